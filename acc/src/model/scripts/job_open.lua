-- Writes down a new job in the hash KEYS[1]: ARGV is its command, the time, its targets (JSON), the
-- seconds to keep it, 1 when it is quiet, and then the nodes. Answers false when it is new, else the targets that it was
-- written down with before: those stand.
local known = redis.call('HMGET', KEYS[1], 'cmd', 'targets')
if known[1] then return known[2] or '[]' end
redis.call('HSET', KEYS[1], 'cmd', ARGV[1], 'created', ARGV[2], 'targets', ARGV[3])
-- Only its own time ends the hash of a quiet job: see job_running.lua and job_result.lua.
if ARGV[5] == '1' then redis.call('HSET', KEYS[1], 'quiet', '1') end
for first = 6, #ARGV, 1000 do
  local fields = {}
  for i = first, math.min(first + 999, #ARGV) do
    fields[#fields + 1] = ARGV[i]
    fields[#fields + 1] = '{"state":"QUEUED"}'
  end
  redis.call('HSET', KEYS[1], unpack(fields))
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return false
