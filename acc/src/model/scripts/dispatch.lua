-- Passes on a command that was taken for the first time, where one server has all keys: all steps in one.
-- KEYS: the job's hash, what may wait until when, the list of jobs, the audit list, this controller's processing list,
-- then of each target the five keys of `enqueue` (queue.lua), and then the wake-ups of other controllers.
-- ARGV: the six of `enqueue`, then the command (JSON), the time, its targets (JSON), the seconds to keep the hash, 1 when it
-- is quiet, until when (ms) it may wait, most entries of the lists, the entry of the audit list ('' for none), the text
-- that was taken, then of each target: the node, and the four of `enqueue`.
-- Answers -1 when the job is known, and nothing was done. Else 1 when all is done, and the text is off the processing
-- list; 0 when the steps have to go on; and in both cases for each target the answer of `enqueue`, or false.
local NODES, KEYS_BEFORE = 16, 5
if open_job(KEYS[1], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11], NODES, 5) then return {-1} end
local answer, is_done = {1}, true
-- Does a call; a key of another type leaves the rest to the steps, which say so.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return true end
  is_done = false
  return false
end
local key = KEYS_BEFORE + 1
for i = NODES, #ARGV, 5 do
  redis.call('ZADD', KEYS[2], 'NX', ARGV[12], ARGV[i] .. ':' .. ARGV[i + 1])
  local good, queued = pcall(enqueue, key, i + 1, i + 4)
  answer[#answer + 1] = good and queued
  is_done = is_done and good and queued[1][1] >= 0
  local holder, wakeups = good and queued[2] or '', nil
  if holder ~= '' and holder ~= ARGV[1] then
    for j = KEYS_BEFORE + #ARGV - NODES + 2, #KEYS do
      if KEYS[j] == 'jsacc:bell:' .. holder then wakeups = KEYS[j] end
    end
    -- Nobody reads the wake-ups of a dead controller, and its nodes come back elsewhere by themselves.
    is_done = wakeups and try('LPUSH', wakeups, ARGV[i]) and try('EXPIRE', wakeups, 60) and is_done
  end
  key = key + 5
end
if is_done and ARGV[14] ~= '' and try('LPUSH', KEYS[3], ARGV[NODES + 1]) then
  if try('LPUSH', KEYS[4], ARGV[14]) then
    for i = 3, 4 do redis.call('LTRIM', KEYS[i], 0, ARGV[13] - 1) end
  else
    redis.call('LREM', KEYS[3], 1, ARGV[NODES + 1])
  end
end
-- Off the processing list only when the rest is written.
is_done = is_done and try('LREM', KEYS[5], -1, ARGV[15])
answer[1] = is_done and 1 or 0
return answer
