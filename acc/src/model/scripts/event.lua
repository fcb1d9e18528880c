-- Adds an event to the list KEYS[1], newest left. KEYS[2] counts how many entries and bytes each source has there.
-- ARGV: the entry, its source ('' for none), most entries and most bytes of the list, most of them of one source.
-- Where the list is full the oldest of all go, and where a source has its share its own oldest. Entries of an earlier
-- version, which begin otherwise, are not counted.
local function source_of(entry)
  local name, gid, nid = string.match(entry, '^{"name":"([^"]*)","gid":(%d+),"nid":(%d+),')
  if name == 'refused' then return name end
  if not name or gid == '0' then return '' end
  return gid .. ':' .. nid
end
local function is_counted(entry)
  return string.sub(entry, 1, 9) == '{"name":"'
end
local function add(field, n)
  local sum = redis.call('HINCRBY', KEYS[2], field, n)
  if sum > 0 then return sum end
  redis.call('HDEL', KEYS[2], field)
  return 0
end
-- A source has a colon or is one word, so these fields are nobody's.
local function count(source, n, bytes)
  local all = add('/bytes', bytes)
  if source == '' then return 0, 0, all end
  return add(source, n), add(source .. '/bytes', bytes), all
end
local length = redis.call('LPUSH', KEYS[1], ARGV[1])
local entries, bytes, all = count(ARGV[2], 1, #ARGV[1])
while length > tonumber(ARGV[3]) or (all > tonumber(ARGV[4]) and length > 1) do
  local oldest = redis.call('RPOP', KEYS[1])
  if is_counted(oldest) then
    local source = source_of(oldest)
    local n, b
    n, b, all = count(source, -1, -#oldest)
    if source == ARGV[2] then entries, bytes = n, b end
  end
  length = length - 1
end
if entries <= tonumber(ARGV[5]) and bytes <= tonumber(ARGV[6]) then return 1 end
-- Counted anew, for an earlier version trims the list without a word, and a reader may take from it.
entries, bytes = 0, 0
for first = 0, length - 1, 100 do
  for _, entry in ipairs(redis.call('LRANGE', KEYS[1], first, first + 99)) do
    if source_of(entry) == ARGV[2] then entries, bytes = entries + 1, bytes + #entry end
  end
end
redis.call('HSET', KEYS[2], ARGV[2], entries, ARGV[2] .. '/bytes', bytes)
if entries <= tonumber(ARGV[5]) and bytes <= tonumber(ARGV[6]) then return 1 end
-- A tenth at once, for they have to be looked for.
local most, most_bytes = tonumber(ARGV[5]) * 0.9, tonumber(ARGV[6]) * 0.9
local last = length - 1
while last > 0 and (entries > most or bytes > most_bytes) do
  local first = math.max(last - 99, 1)
  local some = redis.call('LRANGE', KEYS[1], first, last)
  for i = #some, 1, -1 do
    if (entries > most or bytes > most_bytes) and source_of(some[i]) == ARGV[2] then
      redis.call('LSET', KEYS[1], first + i - 1, '')
      entries, bytes = count(ARGV[2], -1, -#some[i])
    end
  end
  last = first - 1
end
redis.call('LREM', KEYS[1], 0, '')
return 1
