-- Decides on a result, before it is written down anywhere. KEYS: the hash of what was delivered, and
-- for a run of a recurring job the node's last runs, and the key that controllers of 0.1.0 have of that run. ARGV:
-- node, starttime (or 'ac' for the controller's own answer), seconds to remember, recurring (0/1), quiet (0/1), most
-- runs that are remembered, then for a recurring job the milliseconds in which its node may bring one run more, the
-- most runs at once, and the most that it may save up.
-- Answers first (to be written down and then pushed), quiet (to be written down only), repeat (it was
-- pushed before), late (another answer stands), or in how many seconds the node may bring one run more. A '+' before a
-- starttime says that the push has not happened yet: a repeated request may do it.
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
      -- A node may not make up runs without end, which push other nodes' results off the list. The field has the time
      -- (ms) up to which its runs are used up: what is brought late, after an outage, was saved up since. Before the
      -- first one that is since its start, a month ago at most.
      local t, field, pace = redis.call('TIME'), ARGV[1] .. ' used', tonumber(ARGV[7])
      local now = t[1] * 1000 + math.floor(t[2] / 1000)
      local used = tonumber(redis.call('HGET', KEYS[1], field) or '')
      used = used or math.max(math.min(tonumber(ARGV[2]) or now, now), now - 2592000000)
      used = math.max(used, now - ARGV[9] * pace) + pace
      local over = used - now - ARGV[8] * pace
      if over > 0 then return string.format('%.0f', math.min(math.ceil(over / 1000), 60)) end
      redis.call('HSET', KEYS[1], field, string.format('%.0f', used))
      -- The run that came first goes first: a node may claim any starttime.
      if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) then redis.call('ZREMRANGEBYRANK', KEYS[2], 0, 0) end
      redis.call('ZADD', KEYS[2], now, pending)
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
