-- What `plantmix query` offers beside the catalogue's own tables. The per-sample views candidates,
-- rejects, facts, captions, pairs, scores, decisions, draws and placements are made by the reader
-- from the Parquet parts of the current stage versions (columns: manifests/contract/tables.py); these join them.

CREATE VIEW funnel AS
SELECT s.stage, s.num_in, s.num_kept, r.reason, r.num_dropped, s.sealed_at IS NOT NULL AS sealed
FROM current_stages c JOIN stages s USING (fingerprint)
LEFT JOIN stage_reasons r USING (fingerprint);
COMMENT ON VIEW funnel IS 'One row a stage and drop reason of the last build; num_in = num_kept + sum(num_dropped).';

CREATE VIEW samples AS
SELECT c.sample_id, c.domain, c.source, c.url, c.caption, t.text, t.text_source, c.licence, t.licence_id, t.language,
       c.taxon_scientific_name, t.taxon_name, t.taxon_ranks, t.taxon_derived,
       f.outcome, f.image_id, f.phash, f.width_px, f.height_px, f.pool_file,
       d.keep, d.stage AS dropped_by, d.reason, d.value, d.threshold, d.other_sample_id, d.distance, d.kept_because,
       p.split, p.shard, p.position, p.key
FROM candidates c
LEFT JOIN facts f USING (sample_id)
LEFT JOIN captions t USING (sample_id)
LEFT JOIN decisions d USING (sample_id)
LEFT JOIN (SELECT * FROM placements WHERE copy = 0) p USING (sample_id);
COMMENT ON VIEW samples IS 'One row a candidate: where it came from, what was measured, what was decided, where it lies.';

CREATE VIEW conflicts AS
SELECT x.*, coalesce(c.url, c.locator) AS place, coalesce(o.url, o.locator) AS other_place
FROM (SELECT sample_id, unnest(conflicts, recursive := true) FROM decisions WHERE conflicts IS NOT NULL) x
JOIN candidates c USING (sample_id) JOIN candidates o ON o.sample_id = x.other_sample_id;
COMMENT ON VIEW conflicts IS 'One row an image that stays and a copy of it that states another licence or label; where both lie.';

CREATE VIEW hosts AS
SELECT host, count(*) AS num_rows, count(*) FILTER (outcome = 'ok') AS num_ok, sum(num_bytes) AS num_bytes
FROM facts WHERE host IS NOT NULL GROUP BY host ORDER BY num_rows DESC;
COMMENT ON VIEW hosts IS 'One row a host: URLs asked, URLs that came, bytes downloaded.';

CREATE VIEW views AS
SELECT view_name AS name, comment AS about FROM duckdb_views()
WHERE NOT internal AND database_name = 'memory' AND comment IS NOT NULL ORDER BY 1;
COMMENT ON VIEW views IS 'This list.';
