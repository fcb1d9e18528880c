-- Writes down that a node gets credentials. KEYS: its grants, what is known of its enrolment. ARGV: when they are
-- issued (ms), which use of which enrolment token that is ('' for none), 1 where credentials that hold are to be
-- replaced, the value of a grant, then what is granted. Where anything is, the first start grants no roles or labels
-- beside it.
-- Answers 0, and nothing is written, where the node has credentials that hold and another use has brought them.
local known = redis.call('HMGET', KEYS[2], 'issued', 'use')
if known[1] and ARGV[3] ~= '1' and known[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], 'issued', ARGV[1], 'use', ARGV[2])
for i = 5, #ARGV do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[4]) end
if ARGV[5] then
  redis.call('HSETNX', KEYS[2], 'pinned.role', ARGV[1])
  redis.call('HSETNX', KEYS[2], 'pinned.label', ARGV[1])
end
return 1
