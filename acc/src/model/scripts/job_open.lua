-- Writes down a new job: `open_job` of job.lua. KEYS: its hash. ARGV: its command, the time, its targets (JSON), the
-- seconds to keep it, 1 when it is quiet, and then the nodes.
return open_job(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], 6, 1)
