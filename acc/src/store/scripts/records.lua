-- Adds a batch of records to the list KEYS[1], once: KEYS[2] knows each node's last batch in there, and in
-- the field '' how many bytes and entries the list had. ARGV: node, batch, most entries, seconds to keep,
-- most bytes, then the records, oldest first. What is too much goes, oldest first.
-- Answers -1, or the node's last batch when this one is none after it.
local last = redis.call('HGET', KEYS[2], ARGV[1])
if last and tonumber(last) >= tonumber(ARGV[2]) then return tonumber(last) end
local length = redis.call('LLEN', KEYS[1])
local bytes, count = string.match(redis.call('HGET', KEYS[2], '') or '', '^(%d+) (%d+)$')
bytes, count = tonumber(bytes or '0'), tonumber(count or '0')
if count == 0 and length > 0 then
  -- Nobody has counted yet: the newest stand for all.
  local some = redis.call('LRANGE', KEYS[1], 0, 99)
  for i = 1, #some do bytes = bytes + #some[i] end
  count = #some
end
-- Whoever reads the list may take from it: what is left has its share.
if count ~= length then bytes = count > 0 and bytes * length / count or 0 end
for i = 6, #ARGV do
  redis.call('LPUSH', KEYS[1], ARGV[i])
  bytes = bytes + #ARGV[i]
end
length = length + #ARGV - 5
while length > 1 and (length > tonumber(ARGV[3]) or bytes > tonumber(ARGV[5])) do
  local gone = redis.call('RPOP', KEYS[1])
  if not gone then break end
  bytes = bytes - #gone
  length = length - 1
end
-- Nodes come and go: when very many have been here all are forgotten, which matters only to a batch that is
-- on its way just now for the second time.
if redis.call('HLEN', KEYS[2]) > 50000 then redis.call('DEL', KEYS[2]) end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2], '', string.format('%.0f %d', math.max(bytes, 0), length))
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return -1
