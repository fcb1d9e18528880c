-- Delivers a result once. KEYS: the list of results, the hash of what was delivered, and for a run of
-- a recurring job the key of that run. ARGV: node, starttime (or 'ac' for the controller's own answer),
-- text, most results, seconds to keep, seconds to remember, recurring (0/1), quiet (0/1).
-- Answers first, quiet (counted, not delivered), repeat (the same again) or late (another stands).
local before = redis.call('HGET', KEYS[2], ARGV[1])
local verdict = 'first'
if ARGV[7] == '1' then
  if before == 'ac' then return 'late' end
  if redis.call('EXISTS', KEYS[3]) == 1 then return 'repeat' end
  if before and ARGV[8] == '1' then verdict = 'quiet' end
  redis.call('SET', KEYS[3], '1', 'EX', ARGV[6])
else
  if before == ARGV[2] then return 'repeat' end
  if before then return 'late' end
end
if not before then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
redis.call('EXPIRE', KEYS[2], ARGV[6])
if verdict == 'first' then
  redis.call('LPUSH', KEYS[1], ARGV[3])
  redis.call('LTRIM', KEYS[1], 0, ARGV[4] - 1)
  redis.call('EXPIRE', KEYS[1], ARGV[5])
end
return verdict
