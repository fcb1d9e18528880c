-- Pushes a result that was decided to be the first, once. KEYS: the list of results, the hash of what
-- was delivered, for a run of a recurring job the node's last runs, and where one server has all keys the hash
-- that counts results. ARGV: node, starttime (or 'ac'), text, most results, seconds to keep, recurring (0/1),
-- quiet (1: what was delivered is kept no longer than the list), the field of the count or '', seconds to keep
-- counts, the most seconds that a job which does not recur is remembered, most bytes of the results of one that
-- does. Answers 1 when this was the push.
-- The push comes first: a list of another type refuses it, and then nothing says that it was pushed.
local pending, came = '+' .. ARGV[2], nil
if ARGV[6] == '1' then
  came = redis.call('ZSCORE', KEYS[3], pending)
  if not came then return 0 end
elseif redis.call('HGET', KEYS[2], ARGV[1]) ~= '+' .. ARGV[2] then
  return 0
end
if came then
  -- Of such a job a node may bring any number of results.
  push_bounded(KEYS[1], KEYS[2], tonumber(ARGV[4]), tonumber(ARGV[11]), 3, 3)
  -- In this order, for an emptied set loses its expiry.
  redis.call('ZADD', KEYS[3], came, ARGV[2])
  redis.call('ZREM', KEYS[3], pending)
else
  local length = redis.call('LPUSH', KEYS[1], ARGV[3])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  if length > tonumber(ARGV[4]) then redis.call('LTRIM', KEYS[1], 0, ARGV[4] - 1) end
end
local keep, ttl = tonumber(ARGV[5]), redis.call('TTL', KEYS[2])
-- A job is remembered for longer when it recurs and Redis has known it.
if ARGV[7] ~= '1' and ttl > tonumber(ARGV[10]) then keep = tonumber(ARGV[10]) end
-- A minute more or less is not worth a write for each result of a fleet.
if redis.call('TTL', KEYS[1]) < keep - 60 then redis.call('EXPIRE', KEYS[1], keep) end
if ARGV[7] == '1' or ttl < keep - 60 then redis.call('EXPIRE', KEYS[2], keep) end
if ARGV[8] ~= '' then
  local counts = KEYS[#KEYS]
  redis.call('HINCRBY', counts, ARGV[8], 1)
  if redis.call('TTL', counts) < ARGV[9] - 3600 then redis.call('EXPIRE', counts, ARGV[9]) end
end
return 1
