-- Decides on a result: `decide` and `decide_run` of results.lua. KEYS: the hash of what was delivered, and
-- for a run of a recurring job the node's last runs, and the key that controllers of 0.1.0 have of that run. ARGV:
-- node, starttime (or 'ac' for the controller's own answer), seconds to remember, recurring (0/1), quiet (0/1), most
-- runs that are remembered, then for a recurring job the milliseconds in which its node may bring one run more, the
-- most runs at once, and the most that it may save up. Answers the verdict.
local before, verdict = redis.call('HGET', KEYS[1], ARGV[1]), nil
if ARGV[4] == '1' then
  verdict = decide_run(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], before, tonumber(ARGV[3]), ARGV[5] == '1',
    tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]))
else
  verdict = decide(ARGV[2], before)
  if verdict == 'first' and not before then redis.call('HSET', KEYS[1], ARGV[1], '+' .. ARGV[2]) end
end
-- All targets share the hash: nobody's answer shortens for how long the others' are remembered.
if verdict == 'first' or verdict == 'quiet' then keep(KEYS[1], tonumber(ARGV[3]), 0) end
return verdict
