-- The agent ARGV[1] (its instance) of the node with the hash KEYS[1] has stopped at ARGV[2] (ms). A late
-- word of an earlier agent, whose controller was away, says nothing of the one that runs.
if redis.call('HGET', KEYS[1], 'instance') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'stopped', ARGV[2])
return 1
