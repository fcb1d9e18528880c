-- Takes a result that came with a ticket, where one server has all keys: all steps of results.lua in one.
-- KEYS: the job's hash, what was delivered, the list of results, the hash that counts results, and for a run of a
-- recurring job the node's last runs, and the key that controllers of 0.1.0 have of that run.
-- ARGV: node, starttime, text, seconds to remember what was delivered, most results of a job with few targets, seconds to
-- keep those of a quiet one, the field of the count, seconds to keep counts, seconds to keep the hash while nodes are
-- waited for, and once none is, seconds to keep the results, and for a recurring job: quiet (0/1), most runs that are
-- remembered, the milliseconds in which its node may bring one run more, the most runs at once, the most that it may
-- save up, seconds to remember the job, most bytes of its results.
-- Answers the verdict, or 'other' where the job was for other nodes, and when the job was created, '' where that is not
-- known.
local known = redis.call('HMGET', KEYS[1], 'created', 'quiet', ARGV[1])
if known[1] and not known[3] then return {'other', ''} end
local before, seconds, is_quiet = redis.call('HGET', KEYS[2], ARGV[1]), tonumber(ARGV[4]), known[2] and true
local recurs, verdict = KEYS[5] ~= nil, nil
if recurs then
  verdict = decide_run(KEYS[2], KEYS[5], KEYS[6], ARGV[1], ARGV[2], before, seconds, ARGV[12] == '1', tonumber(ARGV[13]),
    tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16]))
else
  verdict = decide(ARGV[2], before)
end
if verdict ~= 'first' and verdict ~= 'quiet' and verdict ~= 'repeat' then return {verdict, known[1] or ''} end
local fields = redis.call('HLEN', KEYS[1])
write_result(KEYS[1], fields, is_quiet, ARGV[1], ARGV[3], tonumber(ARGV[9]), tonumber(ARGV[10]), false,
  verdict == 'repeat')
if recurs then
  if verdict ~= 'repeat' then keep(KEYS[2], seconds, 0) end
  remember(KEYS[2], KEYS[5], tonumber(ARGV[17]), true, 0)
end
if verdict ~= 'first' then return {verdict, known[1] or ''} end
-- Only a quiet job that Redis knows is one.
is_quiet = is_quiet and known[1]
local most, quiet_seconds = math.max(fields, tonumber(ARGV[5])), is_quiet and tonumber(ARGV[6])
if recurs then
  local came = redis.call('ZSCORE', KEYS[5], '+' .. ARGV[2])
  push(KEYS[3], KEYS[2], KEYS[5], came, ARGV[1], ARGV[2], most, tonumber(ARGV[18]))
else
  -- No '+' is needed for a push in the same call, but for one that is refused.
  local pushed, refused = pcall(push, KEYS[3], KEYS[2], nil, nil, ARGV[1], ARGV[2], most)
  if not pushed then
    redis.call('HSET', KEYS[2], ARGV[1], '+' .. ARGV[2])
    keep(KEYS[2], seconds, 0)
    error(refused, 0)
  end
end
keep_pushed(KEYS[3], KEYS[2], redis.call('TTL', KEYS[2]), quiet_seconds or tonumber(ARGV[11]), quiet_seconds or seconds,
  is_quiet)
if not is_quiet then count(KEYS[4], ARGV[7], tonumber(ARGV[8])) end
return {verdict, known[1] or ''}
