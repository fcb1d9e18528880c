-- Pushes a result that was decided to be the first, once. KEYS: the list of results, the hash of what
-- was delivered, and for a run of a recurring job the key of that run. ARGV: node, starttime (or 'ac'),
-- text, most results, seconds to keep, recurring (0/1), quiet (1: what was delivered is kept no longer than the list).
-- Answers 1 when this was the push.
-- The push comes first: a list of another type refuses it, and then nothing says that it was pushed.
if ARGV[6] == '1' then
  if redis.call('GET', KEYS[3]) ~= '0' then return 0 end
elseif redis.call('HGET', KEYS[2], ARGV[1]) ~= '+' .. ARGV[2] then
  return 0
end
local length = redis.call('LPUSH', KEYS[1], ARGV[3])
if ARGV[6] == '1' then
  redis.call('SET', KEYS[3], '1', 'KEEPTTL')
else
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
end
if length > tonumber(ARGV[4]) then redis.call('LTRIM', KEYS[1], 0, ARGV[4] - 1) end
-- A minute more or less is not worth a write for each result of a fleet.
if redis.call('TTL', KEYS[1]) < ARGV[5] - 60 then redis.call('EXPIRE', KEYS[1], ARGV[5]) end
if ARGV[7] == '1' then redis.call('EXPIRE', KEYS[2], ARGV[5]) end
return 1
