-- Adds a batch of records to the list KEYS[1], once: KEYS[2] knows each node's last batch in there.
-- ARGV: node, batch, most entries, seconds to keep, then the records, oldest first.
-- Answers -1, or the node's last batch when this one is none after it.
local last = redis.call('HGET', KEYS[2], ARGV[1])
if last and tonumber(last) >= tonumber(ARGV[2]) then return tonumber(last) end
for i = 5, #ARGV do redis.call('LPUSH', KEYS[1], ARGV[i]) end
redis.call('LTRIM', KEYS[1], 0, ARGV[3] - 1)
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return -1
