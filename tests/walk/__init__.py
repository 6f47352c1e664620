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

Does the walk see faults? Walk over a commit whose faults are known. OLD is a checkout of it, with its environment:

    cp -r tests/walk OLD/tests/
    cp tests/benchmarks/bench_walk.py OLD/tests/benchmarks/
    cp tests/unit/pipeline/scoring/own_scorer.py OLD/tests/unit/pipeline/scoring/
    cd OLD
    sed -i -E 's/manifests.(contract|stores)/manifests/' tests/walk/*.py  # where the modules lay until 2026-12-01
    python tests/benchmarks/bench_walk.py --seed 1 --steps 2000 --once --shorten 0 --out walk.jsonl

`--once` leaves a fault out of later walks once a law has named it, as if OPEN held its name. So a fault that every walk
meets hides no other. `--off kin,init` leaves out faults from the start. What was found on d1ccf785, and at which step,
stands in tests/benchmarks/results/robustness.md.

An own walker, not hypothesis' RuleBasedStateMachine: a step takes a second, so a failing walk is shortened by leaving
steps out, some tens of tries, where hypothesis takes thousands; a long walk goes on after a stop; and the next command
is drawn by what follows it seldom, so that every ordered pair of commands comes often.
"""
