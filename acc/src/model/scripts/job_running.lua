-- The node ARGV[1] has stored the job KEYS[1]: it runs, unless more is known already.
if redis.call('HGET', KEYS[1], ARGV[1]) == '{"state":"QUEUED"}' then
  redis.call('HSET', KEYS[1], ARGV[1], '{"state":"RUNNING"}')
  if redis.call('TTL', KEYS[1]) < tonumber(ARGV[2]) and redis.call('HEXISTS', KEYS[1], 'quiet') == 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
end
return 1
