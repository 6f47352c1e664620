"""Random walks over the commands of `plantmix`, with a clean build as the oracle.

    web.py      small real pictures, and a loopback server that gives each address one content for ever
    world.py    the inputs on the disk, and the settings
    changes.py  every change that a walk may make to them
    arguments.py  the command line of each command
    running.py  one command in this process: killed at a write, with another clock, or in a process of its own
    oracle.py   what must hold after a command; a clean build of the same inputs gives the same release
    laws.py     what must hold of a release though a clean build may break it alike: the world knows better
    walker.py   does a change or a command, and checks what must hold after it
    drawing.py  draws the next change and command, shortens a list that ends badly; OPEN names faults not mended yet

An own walker, not hypothesis' RuleBasedStateMachine: a step takes a second, so a failing walk is shortened by leaving
steps out, some tens of tries, where hypothesis takes thousands; a long walk goes on after a stop; and the next command
is drawn by what follows it seldom, so that every ordered pair of commands comes often.
"""
