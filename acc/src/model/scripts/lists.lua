-- Which of the lists of records ARGV[4…] a node may write to: those that it knows, and new ones while it
-- knows fewer than ARGV[3]. KEYS[1] has its lists by the time (ms) at which they were last asked about, to
-- the hour; ARGV[1] is now (ms), ARGV[2] the seconds for which a list is kept. For each the
-- answer is 1, 2 when it is a new one, or 0 when it may not.
local now, keep, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local answer, count = {}, nil
for i = 4, #ARGV do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if not at and not count then
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - keep * 1000))
    count = redis.call('ZCARD', KEYS[1])
  end
  if at or count < most then
    if not at then count = count + 1 end
    if not at or now - at > 3600000 then
      redis.call('ZADD', KEYS[1], ARGV[1], ARGV[i])
      redis.call('EXPIRE', KEYS[1], keep)
    end
    answer[#answer + 1] = at and 1 or 2
  else
    answer[#answer + 1] = 0
  end
end
return answer
