-- Takes frames of a node into the stream KEYS[1]; KEYS[2] is the hash beside it. Where one server has all keys, KEYS[3]
-- is the watch, KEYS[4] the hash of all streams, and KEYS[5], where the node has no ticket, the job.
-- ARGV: node ('' only looks after the stream), offset, frames, id, most bytes of a stream, of all streams, the time in
-- windows of a few seconds, and where the watch lies elsewhere: its value, its ms left (-2: there is none), the bytes of
-- all other streams.
-- Answers: what became of it, `have`, seconds left of the watch, `room`, the bytes that the stream takes.
--
-- An entry's id is the number of bytes that the stream has ever taken, this entry included. So the id that a reader has
-- read up to says how much it has not read.
-- The field '' of the hash: the last id, the window of the last request, nodes in it, nodes in the window before. The
-- field of a node: its `have`, and the window of its last request.
local OVERHEAD, FIRST, LONGEST, LEAST = 64, 65536, 1048576, 512
local stream, hash, watch, uses, job = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local node, offset, frames, id = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local most, budget, now = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
if job and redis.call('HEXISTS', job, node) == 0 then return {'forbidden', 0, 0, 0, 0} end

local value, left, others
if watch then
  value, left = redis.call('GET', watch), redis.call('PTTL', watch)
  others = tonumber(redis.call('HGET', uses, '') or '0') - tonumber(redis.call('HGET', uses, id) or '0')
else
  value, left, others = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])
  if left == -2 then value = false end
end
local state = redis.call('HGET', hash, '')
local sum, window, count, before = string.match(state or '', '^(%d+) (%d+) (%d+) (%d+)$')
sum, window, count, before = tonumber(sum or '0'), tonumber(window or '0'), tonumber(count or '0'), tonumber(before or '0')
local have, seen = string.match(redis.call('HGET', hash, node) or '', '^(%d+) (%d+)$')
if node == '' then have, seen = nil, nil end
have = tonumber(have or '0')

-- Keeps both for so many seconds.
local function keep(seconds)
  redis.call('EXPIRE', stream, seconds)
  redis.call('EXPIRE', hash, seconds)
end

if not value then
  if not state and redis.call('EXISTS', stream) == 0 then
    return {'gone', 0, 0, 0, 0}
  end
  if redis.call('TTL', hash) > 60 or redis.call('TTL', stream) > 60 then keep(60) end
  return {'lapsed', have, 0, 0, tonumber(uses and redis.call('HGET', uses, id) or '0')}
end
if not state then
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if last then sum = tonumber(string.match(last[1], '^%d+')) end
end

local told = tonumber(string.match(value, '^(%d+)%-%d+$') or '0')
-- Where Redis died and lost entries that were read, those that come now are new to the reader.
if told > sum and told < 2^53 then sum = told end
local read = value ~= '1' and math.min(told, sum)
if now ~= window then
  before = now == window + 1 and count or 0
  count, window = 0, now
end
if node ~= '' and tonumber(seen or '-1') ~= now then count = count + 1 end
local most_now = math.max(math.min(most, budget - others), 0)
local free = read and most_now - (sum - read) or most_now
local nodes = math.max(count, before, 1)

local verdict = 'ok'
if node ~= '' and offset ~= have then
  verdict = 'offset'
elseif #frames > 0 then
  local cost = #frames + OVERHEAD
  if cost > free or (#frames > FIRST and cost > free / nodes) then
    verdict = 'full'
  else
    redis.call('XADD', stream, string.format('%.0f-0', sum + cost), 'n', node, 'o', ARGV[2], 'd', frames)
    sum, have = sum + cost, have + #frames
    if read then free = free - cost end
  end
end

-- Read entries go; where nobody is waited for, the oldest.
local done = read or math.max(sum - most_now, 0)
if done > 0 then
  local trimmed = redis.pcall('XTRIM', stream, 'MINID', '=', string.format('%.0f-0', done + 1))
  if type(trimmed) == 'table' and trimmed.err then
    -- Redis below 6.2 has no MINID.
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', string.format('%.0f-0', done), 'COUNT', 64)) do
      redis.call('XDEL', stream, entry[1])
    end
  end
end
redis.call('HSET', hash, '', string.format('%.0f %.0f %.0f %.0f', sum, window, count, before))
if node ~= '' then redis.call('HSET', hash, node, string.format('%.0f %.0f', have, now)) end
-- A controller looks after the stream while its watch lives. This holds while all controllers are away.
keep(900)
local bytes = math.min(sum - done, sum)
if uses then account(uses, id, bytes) end
local room = math.min(math.floor(free / nodes) - OVERHEAD, LONGEST)
if room < LEAST then room = 0 end
return {verdict, have, left < 0 and 30 or math.max(math.ceil(left / 1000), 1), room, bytes}
