-- Shared by the scripts that take results, which follow this text; where they push, bounded.lua stands in front of it.
-- The steps of one result: `decide`, `write_result`, `remember`, `push`. Each may be repeated.

-- Keeps `key` for `seconds` from now, unless no more than `slack` seconds are missing.
local function keep(key, seconds, slack)
  if redis.call('TTL', key) < seconds - slack then redis.call('EXPIRE', key, seconds) end
end

-- Decides on a run of a job that recurs: see `decide`. `before` is what `done` has of the node, `old_run` the key that
-- controllers of 0.1.0 have of the run, `quiet` whether it is delivered only as the first one. `most` runs are
-- remembered; one more may come every `pace` ms, `at_once` at once, `saved` after a pause.
local function decide_run(done, runs, old_run, node, run, before, seconds, quiet, most, pace, at_once, saved)
  if before == 'ac' or before == '+ac' then return 'late' end
  local verdict, pending = 'first', '+' .. run
  if redis.call('ZSCORE', runs, run) or redis.call('GET', old_run) == '1' then return 'repeat' end
  if not redis.call('ZSCORE', runs, pending) then
    -- The first run is delivered whatever it says, also when it is sent again.
    if before and before ~= run and quiet then
      verdict = 'quiet'
    else
      -- A node may not make up runs without end, which push other nodes' results off the list. The field has the time
      -- (ms) up to which its runs are used up: what is brought late, after an outage, was saved up since. Before the
      -- first one that is since its start, a month ago at most.
      local t, field = redis.call('TIME'), node .. ' used'
      local now = t[1] * 1000 + math.floor(t[2] / 1000)
      local used = tonumber(redis.call('HGET', done, field) or '')
      used = used or math.max(math.min(tonumber(run) or now, now), now - 2592000000)
      used = math.max(used, now - saved * pace) + pace
      local over = used - now - at_once * pace
      if over > 0 then return string.format('%.0f', math.min(math.ceil(over / 1000), 60)) end
      redis.call('HSET', done, field, string.format('%.0f', used))
      -- The run that came first goes first: a node may claim any starttime.
      if redis.call('ZCARD', runs) >= most then redis.call('ZREMRANGEBYRANK', runs, 0, 0) end
      redis.call('ZADD', runs, now, pending)
      keep(runs, seconds, 0)
    end
  end
  if not before then redis.call('HSET', done, node, run) end
  return verdict
end

-- Decides on another result, before it is written down anywhere: first (to be written down and then pushed), repeat (it
-- was pushed before), late (another answer stands), or for a run that recurs also quiet (to be written down only), or
-- in how many seconds the node may bring one run more. A '+' before a starttime says that the push has not happened
-- yet: a repeated request may do it.
local function decide(run, before)
  if before == run then return 'repeat' end
  if before and before ~= '+' .. run then return 'late' end
  return 'first'
end

-- Writes the result `text` of `node` into the hash of its job, which has so many fields: none where Redis does not know
-- it any more. The hash is kept for `seconds` once nobody is waited for, and for `open_seconds` before. `withdrawn`: the
-- node also leaves the list of targets, for the controller answered for it. `repeated`: it was pushed before, in these
-- words or (by a node that lost power) in others: what its client has stands here too, and only a state that is no
-- answer gives way.
local function write_result(job, fields, is_quiet, node, text, open_seconds, seconds, withdrawn, repeated)
  if fields == 0 then return 0 end
  if repeated then
    local stands = redis.call('HGET', job, node)
    if stands and not string.find(stands, '^{"state": ?"[QR]U[A-Z]+"}$') then return 0 end
  end
  redis.call('HSET', job, node, text)
  if withdrawn then
    local others = {}
    for other in string.gmatch(redis.call('HGET', job, 'targets') or '', '"([0-9:]+)"') do
      if other ~= node then others[#others + 1] = '"' .. other .. '"' end
    end
    redis.call('HSET', job, 'targets', '[' .. table.concat(others, ',') .. ']')
  end
  if is_quiet then return 1 end
  -- The hash was to live for as long as its command might wait. Of a large fleet nobody looks whether all have answered:
  -- with each answer that would cost too much.
  local open = fields > 35
  if not open then
    for other in string.gmatch(redis.call('HGET', job, 'targets') or '', '"([0-9:]+)"') do
      -- A state that is no result yet is no longer than {"state":"RUNNING"}.
      if redis.call('HSTRLEN', job, other) < 20 then open = true end
    end
  end
  if open then keep(job, open_seconds, 0) else redis.call('EXPIRE', job, seconds) end
  return 1
end

-- Remembers for `seconds` what was delivered of a job that recurs, for its next run may be far away. When Redis does not
-- know the job any more, that is only gone on with: what is kept for more than a `day` was so at a run of a job that
-- Redis did know.
local function remember(done, runs, seconds, is_known, day)
  if not is_known and redis.call('TTL', done) <= day then return 0 end
  keep(done, seconds, 0)
  keep(runs, seconds, 0)
  return 1
end

-- Pushes the result ARGV[3], which was decided to be the first. `came` is when a run of a job that recurs came, `runs`
-- the node's runs; otherwise both are nil. At most `most` results are kept, and of a job that recurs `most_bytes`.
-- The push comes first: a list of another type refuses it, and then nothing says that it was pushed.
local function push(list, done, runs, came, node, run, most, most_bytes)
  if came then
    -- Of such a job a node may bring any number of results.
    push_bounded(list, done, most, most_bytes, 3, 3)
    -- In this order, for an emptied set loses its expiry.
    redis.call('ZADD', runs, came, run)
    redis.call('ZREM', runs, '+' .. run)
  else
    local length = redis.call('LPUSH', list, ARGV[3])
    redis.call('HSET', done, node, run)
    if length > most then redis.call('LTRIM', list, 0, most - 1) end
  end
end

-- Keeps `list` for `seconds` and `done` for `done_seconds`, no longer than that when the job is quiet. A minute (or a
-- tenth) more or less is not worth a write for each result of a fleet. `left` is for how many seconds `done` is kept by now.
local function keep_pushed(list, done, left, seconds, done_seconds, is_quiet)
  keep(list, seconds, math.min(60, seconds / 10))
  if is_quiet or left < done_seconds - 60 then redis.call('EXPIRE', done, done_seconds) end
end

-- Counts a result for the audit list.
local function count(counts, field, seconds)
  redis.call('HINCRBY', counts, field, 1)
  keep(counts, seconds, 3600)
end
