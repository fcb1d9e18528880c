-- Decides on a result, before it is written down anywhere. KEYS: the hash of what was delivered, and
-- for a run of a recurring job the node's last runs, and the key that controllers of 0.1.0 have of that run. ARGV:
-- node, starttime (or 'ac' for the controller's own answer), seconds to remember, recurring (0/1), quiet (0/1), most
-- runs that are remembered.
-- Answers first (to be written down and then pushed), quiet (to be written down only), repeat (it was
-- pushed before) or late (another answer stands). A '+' before a starttime says that the push has not
-- happened yet: whoever asks again may do it.
local before = redis.call('HGET', KEYS[1], ARGV[1])
local verdict = 'first'
if ARGV[4] == '1' then
  if before == 'ac' or before == '+ac' then return 'late' end
  local pending = '+' .. ARGV[2]
  if redis.call('ZSCORE', KEYS[2], ARGV[2]) or redis.call('GET', KEYS[3]) == '1' then return 'repeat' end
  if not redis.call('ZSCORE', KEYS[2], pending) then
    -- The first run is delivered whatever it says, also when it is sent again.
    if before and before ~= ARGV[2] and ARGV[5] == '1' then
      verdict = 'quiet'
    else
      -- What came first goes first: a node may say of its runs what it likes.
      if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) then redis.call('ZREMRANGEBYRANK', KEYS[2], 0, 0) end
      local time = redis.call('TIME')
      redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000), pending)
      if redis.call('TTL', KEYS[2]) < tonumber(ARGV[3]) then redis.call('EXPIRE', KEYS[2], ARGV[3]) end
    end
  end
  if not before then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
else
  if before == ARGV[2] then return 'repeat' end
  if before and before ~= '+' .. ARGV[2] then return 'late' end
  if not before then redis.call('HSET', KEYS[1], ARGV[1], '+' .. ARGV[2]) end
end
-- All targets share the hash: nobody's answer shortens for how long the others' are remembered.
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return verdict
