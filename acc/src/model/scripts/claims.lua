-- Compares the claims of a node with its grants. KEYS: its grants, what is known of its enrolment.
-- ARGV: now (ms), for how long (ms) claims beyond the grants are not told again; then, where the node says what it
-- claims: when its credentials were issued (ms), the value of a grant that is made here, and for each kind that it
-- speaks of the kind, how many claims there are, and the claims.
-- The first claims of a kind since the node was enrolled are granted. Credentials that were revoked claim nothing.
-- Answers {'revoked'}, {'unknown'}, or {'known', kinds, granted, beyond, 1 when those beyond are to be told}.
local kinds, now = {'role', 'label', 'host'}, tonumber(ARGV[1])
if ARGV[3] then
  local known = redis.call('HMGET', KEYS[2], 'issued', 'revoked')
  if tonumber(ARGV[3]) <= tonumber(known[2] or '-1') then return {'revoked'} end
  if not known[1] then redis.call('HSET', KEYS[2], 'issued', ARGV[3]) end
  local i = 5
  while ARGV[i] do
    local kind, last = ARGV[i], i + 1 + tonumber(ARGV[i + 1])
    if redis.call('HSETNX', KEYS[2], 'pinned.' .. kind, ARGV[1]) == 1 then
      for j = i + 2, last do redis.call('HSETNX', KEYS[1], kind .. ':' .. ARGV[j], ARGV[4]) end
    end
    redis.call('HSET', KEYS[2], kind, table.concat(ARGV, ' ', i + 2, last))
    i = last + 1
  end
end
local claims = redis.call('HMGET', KEYS[2], 'role', 'label', 'host', 'told', 'told_at')
local known, granted, beyond = {}, {}, {}
for k = 1, 3 do
  if claims[k] then
    known[#known + 1] = kinds[k]
    for claim in string.gmatch(claims[k], '%S+') do
      local field = kinds[k] .. ':' .. claim
      local list = redis.call('HEXISTS', KEYS[1], field) == 1 and granted or beyond
      list[#list + 1] = field
    end
  end
end
if #known == 0 then return {'unknown'} end
local text, tell = table.concat(beyond, ' '), 0
if text == '' then
  if claims[4] then redis.call('HDEL', KEYS[2], 'told') end
elseif claims[4] ~= text and now - tonumber(claims[5] or '0') >= tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[2], 'told', text, 'told_at', ARGV[1])
  tell = 1
end
return {'known', known, granted, beyond, tell}
