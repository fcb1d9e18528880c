-- Shared by the scripts that write down a new job, which follow this text.
-- Writes it down in the hash `job`: its command, the time, its targets (JSON), for so many seconds, whether it is quiet,
-- and of ARGV from `first` on each `step`th, the nodes. Answers false when it is new, else the targets that it was written
-- down with before: those stand.
local function open_job(job, cmd, created, targets, seconds, quiet, first, step)
  local known = redis.call('HMGET', job, 'cmd', 'targets')
  if known[1] then return known[2] or '[]' end
  redis.call('HSET', job, 'cmd', cmd, 'created', created, 'targets', targets)
  -- Only its own time ends the hash of a quiet job: see job_running.lua and results.lua.
  if quiet == '1' then redis.call('HSET', job, 'quiet', '1') end
  for from = first, #ARGV, 1000 * step do
    local fields = {}
    for i = from, math.min(from + 999 * step, #ARGV), step do
      fields[#fields + 1] = ARGV[i]
      fields[#fields + 1] = '{"state":"QUEUED"}'
    end
    redis.call('HSET', job, unpack(fields))
  end
  redis.call('EXPIRE', job, seconds)
  return false
end
