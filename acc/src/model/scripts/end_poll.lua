-- The agent ARGV[1] (its instance) of the node with the queue's state KEYS[1] has stopped: nobody holds its poll any
-- more, so that what is queued from now on is not handed over to a connection that is closed.
if redis.call('HGET', KEYS[1], 'instance') ~= ARGV[1] then return 0 end
return redis.call('HDEL', KEYS[1], 'ac')
