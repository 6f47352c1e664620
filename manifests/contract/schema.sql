-- The catalogue: one DuckDB file a work folder, written by the driver alone.
-- Per-sample tables are Parquet parts beside it; views.sql joins them for readers.

CREATE TABLE IF NOT EXISTS inputs (
    path VARCHAR PRIMARY KEY, num_bytes BIGINT NOT NULL, mtime_ns BIGINT NOT NULL, sha256 VARCHAR NOT NULL,
    stamp VARCHAR
);
COMMENT ON TABLE inputs IS 'Content hashes of input files, so that an unchanged file is not read again to know it.';
COMMENT ON COLUMN inputs.stamp IS 'Its stamp when it was hashed, as in stamps; null: it must be hashed again';
COMMENT ON COLUMN inputs.path IS 'Path as the config gives it';
COMMENT ON COLUMN inputs.num_bytes IS 'Size when it was hashed';
COMMENT ON COLUMN inputs.mtime_ns IS 'Modification time when it was hashed, nanoseconds since 1970';
COMMENT ON COLUMN inputs.sha256 IS 'Hash of the content, hex';

CREATE TABLE IF NOT EXISTS stamps (place VARCHAR NOT NULL, stamp VARCHAR NOT NULL, sha256 VARCHAR NOT NULL);
COMMENT ON TABLE stamps IS 'Content hashes of local pictures, so that an unchanged one is not read again to know it.';
COMMENT ON COLUMN stamps.place IS 'The source or evaluation set, and the name of the file in its folder';
COMMENT ON COLUMN stamps.stamp IS 'Size, times of change and inode, or the version that a store names';
COMMENT ON COLUMN stamps.sha256 IS 'Hash of the content, hex; empty where it could not be read';

CREATE TABLE IF NOT EXISTS stages (
    fingerprint VARCHAR PRIMARY KEY, stage VARCHAR NOT NULL, identity VARCHAR NOT NULL,
    opened_at TIMESTAMP NOT NULL, sealed_at TIMESTAMP,
    num_in BIGINT, num_kept BIGINT, notes VARCHAR
);
COMMENT ON TABLE stages IS 'Every version of every stage that was ever begun; a sealed one is never done again.';
COMMENT ON COLUMN stages.fingerprint IS 'sha256 of the identity: code version, recipe and what it was made from';
COMMENT ON COLUMN stages.stage IS 'Name in FLOW';
COMMENT ON COLUMN stages.identity IS 'What the fingerprint stands for, json';
COMMENT ON COLUMN stages.opened_at IS 'When its first part was planned, UTC';
COMMENT ON COLUMN stages.sealed_at IS 'When its last part was committed, UTC; null while it is unfinished';
COMMENT ON COLUMN stages.num_in IS 'Rows that came in';
COMMENT ON COLUMN stages.num_kept IS 'Rows that went on; num_in = num_kept + sum of stage_reasons.num_dropped';
COMMENT ON COLUMN stages.notes IS 'Further facts the stage states of itself, json';

CREATE TABLE IF NOT EXISTS stage_reasons (
    fingerprint VARCHAR NOT NULL, reason VARCHAR NOT NULL, num_dropped BIGINT NOT NULL,
    PRIMARY KEY (fingerprint, reason)
);
COMMENT ON TABLE stage_reasons IS 'Why rows went no further than a stage version.';
COMMENT ON COLUMN stage_reasons.fingerprint IS 'Stage version';
COMMENT ON COLUMN stage_reasons.reason IS 'One of the closed list of the stage';
COMMENT ON COLUMN stage_reasons.num_dropped IS 'Rows dropped for it';

CREATE TABLE IF NOT EXISTS current_stages (stage VARCHAR PRIMARY KEY, fingerprint VARCHAR NOT NULL);
COMMENT ON TABLE current_stages IS 'The version of each stage that the last build used: what the per-sample views show.';
COMMENT ON COLUMN current_stages.stage IS 'Name in FLOW';
COMMENT ON COLUMN current_stages.fingerprint IS 'Stage version';

CREATE TABLE IF NOT EXISTS parts (
    part_key VARCHAR PRIMARY KEY, stage VARCHAR NOT NULL, step VARCHAR NOT NULL, reuse_key VARCHAR NOT NULL,
    num_in BIGINT, num_kept BIGINT, reasons VARCHAR NOT NULL, notes VARCHAR NOT NULL,
    seconds DOUBLE NOT NULL, attempts INTEGER NOT NULL, committed_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE parts IS 'Committed units of work; a part exists when its row does.';
COMMENT ON COLUMN parts.part_key IS 'sha256 of what the part is made from';
COMMENT ON COLUMN parts.stage IS 'Name in FLOW';
COMMENT ON COLUMN parts.step IS 'Step of the stage';
COMMENT ON COLUMN parts.reuse_key IS 'Parts with the same reuse_key were made by the same recipe';
COMMENT ON COLUMN parts.num_in IS 'Rows in, where the step counts them';
COMMENT ON COLUMN parts.num_kept IS 'Rows kept, where the step counts them';
COMMENT ON COLUMN parts.reasons IS 'Rows dropped by reason, json';
COMMENT ON COLUMN parts.notes IS 'Further facts, json';
COMMENT ON COLUMN parts.seconds IS 'Time in the worker';
COMMENT ON COLUMN parts.attempts IS 'Tries it took';
COMMENT ON COLUMN parts.committed_at IS 'UTC';

CREATE TABLE IF NOT EXISTS stage_parts (
    fingerprint VARCHAR NOT NULL, step VARCHAR NOT NULL, position BIGINT NOT NULL, part_key VARCHAR NOT NULL,
    PRIMARY KEY (fingerprint, step, position)
);
COMMENT ON TABLE stage_parts IS 'Which parts a stage version stands on, in plan order; versions share parts.';
COMMENT ON COLUMN stage_parts.fingerprint IS 'Stage version';
COMMENT ON COLUMN stage_parts.step IS 'Step of the stage';
COMMENT ON COLUMN stage_parts.position IS 'Place in the plan of the step';
COMMENT ON COLUMN stage_parts.part_key IS 'The part';

CREATE TABLE IF NOT EXISTS files (
    part_key VARCHAR NOT NULL, table_name VARCHAR NOT NULL, path VARCHAR NOT NULL,
    num_rows BIGINT NOT NULL, num_bytes BIGINT NOT NULL, sha256 VARCHAR NOT NULL
);
COMMENT ON TABLE files IS 'Files that parts published.';
COMMENT ON COLUMN files.part_key IS 'The part that wrote it';
COMMENT ON COLUMN files.table_name IS 'candidates, facts, pool, shard, ...: what the file holds';
COMMENT ON COLUMN files.path IS 'Relative to the work folder';
COMMENT ON COLUMN files.num_rows IS 'Rows or samples in it';
COMMENT ON COLUMN files.num_bytes IS 'Size';
COMMENT ON COLUMN files.sha256 IS 'Hash of the content, hex';

CREATE TABLE IF NOT EXISTS mixes (
    fingerprint VARCHAR NOT NULL, domain VARCHAR NOT NULL, target_share DOUBLE NOT NULL,
    realised_share DOUBLE NOT NULL, num_available BIGINT NOT NULL, num_drawn BIGINT NOT NULL,
    num_epochs DOUBLE NOT NULL, num_heldout BIGINT NOT NULL,
    PRIMARY KEY (fingerprint, domain)
);
COMMENT ON TABLE mixes IS 'What each mix stage version drew from each domain.';
COMMENT ON COLUMN mixes.fingerprint IS 'Version of the mix stage';
COMMENT ON COLUMN mixes.domain IS 'Domain';
COMMENT ON COLUMN mixes.target_share IS 'Share asked for, 0 to 1';
COMMENT ON COLUMN mixes.realised_share IS 'Share drawn, 0 to 1';
COMMENT ON COLUMN mixes.num_available IS 'Distinct samples that could be drawn for training';
COMMENT ON COLUMN mixes.num_drawn IS 'Training samples drawn, repeats counted';
COMMENT ON COLUMN mixes.num_epochs IS 'num_drawn over num_available';
COMMENT ON COLUMN mixes.num_heldout IS 'Samples set aside for evaluation';

CREATE TABLE IF NOT EXISTS releases (
    name VARCHAR PRIMARY KEY, path VARCHAR NOT NULL, fingerprint VARCHAR NOT NULL,
    num_samples BIGINT NOT NULL, record_sha256 VARCHAR NOT NULL, sealed_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE releases IS 'Sealed releases.';
COMMENT ON COLUMN releases.name IS 'Folder name: NAME-VERSION';
COMMENT ON COLUMN releases.path IS 'Relative to the work folder';
COMMENT ON COLUMN releases.fingerprint IS 'Version of the pack stage';
COMMENT ON COLUMN releases.num_samples IS 'Training samples, repeats counted';
COMMENT ON COLUMN releases.record_sha256 IS 'Hash of release.json';
COMMENT ON COLUMN releases.sealed_at IS 'UTC';

CREATE TABLE IF NOT EXISTS shards (
    release VARCHAR NOT NULL, split VARCHAR NOT NULL, shard VARCHAR NOT NULL,
    num_samples BIGINT NOT NULL, num_bytes BIGINT NOT NULL, sha256 VARCHAR NOT NULL,
    PRIMARY KEY (release, split, shard)
);
COMMENT ON TABLE shards IS 'Training tars of the sealed releases.';
COMMENT ON COLUMN shards.release IS 'Release name';
COMMENT ON COLUMN shards.split IS 'train or heldout';
COMMENT ON COLUMN shards.shard IS 'File name';
COMMENT ON COLUMN shards.num_samples IS 'Samples in it';
COMMENT ON COLUMN shards.num_bytes IS 'Size';
COMMENT ON COLUMN shards.sha256 IS 'Hash of the content, hex';

CREATE TABLE IF NOT EXISTS proxy_runs (
    run VARCHAR PRIMARY KEY, model_size VARCHAR, step BIGINT, samples_seen BIGINT, seed BIGINT,
    mixture VARCHAR NOT NULL, losses VARCHAR NOT NULL, recorded_at TIMESTAMP NOT NULL,
    study VARCHAR, epochs VARCHAR, validation VARCHAR
);
COMMENT ON TABLE proxy_runs IS 'Small training runs over a list of ratios: what the planner fits its law on.';
COMMENT ON COLUMN proxy_runs.run IS 'STUDY/RUN';
COMMENT ON COLUMN proxy_runs.study IS 'Name of the folder of the runs: runs of one study are comparable';
COMMENT ON COLUMN proxy_runs.model_size IS 'Architecture or size label';
COMMENT ON COLUMN proxy_runs.step IS 'Optimiser steps taken';
COMMENT ON COLUMN proxy_runs.samples_seen IS 'Training samples seen, repeats counted';
COMMENT ON COLUMN proxy_runs.seed IS 'Seed of the run';
COMMENT ON COLUMN proxy_runs.mixture IS 'Share by domain, json';
COMMENT ON COLUMN proxy_runs.losses IS 'Validation loss by domain, json';
COMMENT ON COLUMN proxy_runs.epochs IS 'How often a sample of each domain was seen on average, json';
COMMENT ON COLUMN proxy_runs.validation IS 'What the losses were measured on: release, split, batch_size, json';
COMMENT ON COLUMN proxy_runs.recorded_at IS 'UTC';

CREATE TABLE IF NOT EXISTS fetch_rounds (
    recipe VARCHAR NOT NULL, round INTEGER NOT NULL, outcomes VARCHAR NOT NULL,
    opened_at TIMESTAMP NOT NULL, closed_at TIMESTAMP,
    PRIMARY KEY (recipe, round)
);
COMMENT ON TABLE fetch_rounds IS 'Rounds of `plantmix retry`; builds stand on the parts of closed ones.';
COMMENT ON COLUMN fetch_rounds.recipe IS 'reuse_key of the fetch parts';
COMMENT ON COLUMN fetch_rounds.round IS 'From 1 on; round 0 is the fetch of a build';
COMMENT ON COLUMN fetch_rounds.outcomes IS 'Outcomes whose rows were asked for again, json';
COMMENT ON COLUMN fetch_rounds.opened_at IS 'UTC';
COMMENT ON COLUMN fetch_rounds.closed_at IS 'UTC; null while it is unfinished';

CREATE TABLE IF NOT EXISTS configs (
    config_sha256 VARCHAR PRIMARY KEY, config VARCHAR NOT NULL, used_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE configs IS 'Configurations that builds ran with, without secrets; `plantmix retry` and `repair` go by the newest.';
COMMENT ON COLUMN configs.config_sha256 IS 'Hash of the json, and whether secrets were taken out';
COMMENT ON COLUMN configs.config IS 'What was set in the configuration, json';
COMMENT ON COLUMN configs.used_at IS 'When a build last ran with it, UTC';

CREATE TABLE IF NOT EXISTS snapshots (catalog_id VARCHAR NOT NULL, format INTEGER NOT NULL, number BIGINT NOT NULL);
COMMENT ON TABLE snapshots IS 'One row: which catalogue this is, and how many snapshots were taken of it.';
COMMENT ON COLUMN snapshots.catalog_id IS 'Random; tells one work folder from another';
COMMENT ON COLUMN snapshots.format IS 'Format of the catalogue';
COMMENT ON COLUMN snapshots.number IS 'Number of the newest catalog.snapshot';
