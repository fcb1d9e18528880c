-- Shared by the scripts that push onto lists bounded in entries and in bytes; they follow this text.
-- Pushes ARGV[first…last] onto `list`, oldest first, and drops the oldest entries that are too many or too much; one
-- entry stays, however large. The field '' of the hash `counts` has how many bytes and entries the list had.
-- Answers by how many bytes it has grown.
local function push_bounded(list, counts, most, most_bytes, first, last)
  local length = redis.call('LLEN', list)
  local bytes, count = string.match(redis.call('HGET', counts, '') or '', '^(%d+) (%d+)$')
  bytes, count = tonumber(bytes or '0'), tonumber(count or '0')
  if count == 0 and length > 0 then
    -- Nobody has counted yet: the newest stand for all.
    local some = redis.call('LRANGE', list, 0, 99)
    for i = 1, #some do bytes = bytes + #some[i] end
    count = #some
  end
  -- A reader of the list may take from it: what is left has its share.
  if count ~= length then bytes = count > 0 and bytes * length / count or 0 end
  local before = bytes
  for i = first, last do
    redis.call('LPUSH', list, ARGV[i])
    bytes = bytes + #ARGV[i]
  end
  length = length + last - first + 1
  while length > 1 and (length > most or bytes > most_bytes) do
    local gone = redis.call('RPOP', list)
    if not gone then break end
    bytes = bytes - #gone
    length = length - 1
  end
  redis.call('HSET', counts, '', string.format('%.0f %d', math.max(bytes, 0), length))
  return math.max(math.floor(bytes - before), 0)
end
-- How many bytes the list has, as `push_bounded` counted them, and how many entries.
local function size(list, counts)
  local bytes, count = string.match(redis.call('HGET', counts, '') or '', '^(%d+) (%d+)$')
  local length = redis.call('LLEN', list)
  return tonumber(bytes or '0') * (length / math.max(tonumber(count or '0'), 1)), length
end
