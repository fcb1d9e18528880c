-- Adds a batch of records to the list KEYS[1], once: KEYS[2] knows each node's last batch in there, and in
-- the field '' how many bytes and entries the list had. ARGV: node, batch, most entries, seconds to keep,
-- most bytes, 1 when these go into the list only while it is less than half full, then the records, oldest first.
-- Records beyond these bounds go, oldest first.
-- Answers the growth in bytes, and the node's last batch when this one is none after it, or -1.
local last = redis.call('HGET', KEYS[2], ARGV[1])
if last and tonumber(last) >= tonumber(ARGV[2]) then return {0, tonumber(last)} end
local most, most_bytes, growth = tonumber(ARGV[3]), tonumber(ARGV[5]), 0
local has_room = true
if ARGV[6] == '1' then
  local bytes, length = size(KEYS[1], KEYS[2])
  for i = 7, #ARGV do bytes = bytes + #ARGV[i] end
  has_room = bytes <= most_bytes / 2 and length + #ARGV - 6 <= most / 2
end
-- Nodes come and go: when very many have been here all are forgotten, which matters only to a batch that is
-- on its way just now for the second time.
if redis.call('HLEN', KEYS[2]) > 50000 then redis.call('DEL', KEYS[2]) end
if has_room then growth = push_bounded(KEYS[1], KEYS[2], most, most_bytes, 7, #ARGV) end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {has_room and growth or -1, -1}
