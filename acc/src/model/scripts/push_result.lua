-- Pushes a result that was decided to be the first, once: `push` of results.lua. KEYS: the list of results, the hash of
-- what was delivered, for a run of a recurring job the node's last runs, and where one server has all keys the hash
-- that counts results. ARGV: node, starttime (or 'ac'), text, most results, seconds to keep them, recurring (0/1),
-- quiet (1: what was delivered is kept no longer than ARGV[12]), the field of the count or '', seconds to keep
-- counts, the most seconds that a job which does not recur is remembered, most bytes of the results of one that
-- does, seconds to remember what was delivered, seconds to keep the results of a job that Redis has known.
-- Answers 1 when this was the push.
local came, runs
if ARGV[6] == '1' then
  runs = KEYS[3]
  came = redis.call('ZSCORE', runs, '+' .. ARGV[2])
  if not came then return 0 end
elseif redis.call('HGET', KEYS[2], ARGV[1]) ~= '+' .. ARGV[2] then
  return 0
end
push(KEYS[1], KEYS[2], runs, came, ARGV[1], ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[11]))
local seconds, left, is_quiet = tonumber(ARGV[5]), redis.call('TTL', KEYS[2]), ARGV[7] == '1'
-- A job is remembered for longer when it recurs and Redis has known it.
if not is_quiet and left > tonumber(ARGV[10]) then seconds = tonumber(ARGV[13]) end
keep_pushed(KEYS[1], KEYS[2], left, seconds, tonumber(ARGV[12]), is_quiet)
if ARGV[8] ~= '' then count(KEYS[#KEYS], ARGV[8], tonumber(ARGV[9])) end
return 1
