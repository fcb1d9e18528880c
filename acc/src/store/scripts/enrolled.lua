-- Writes down that a node gets credentials. KEYS: its grants, what is known of its enrolment. ARGV: when they are
-- issued (ms), the value of a grant, then what is granted. Where anything is, the first start grants no roles or
-- labels beside it.
redis.call('HSET', KEYS[2], 'issued', ARGV[1])
for i = 3, #ARGV do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[2]) end
if ARGV[3] then
  redis.call('HSETNX', KEYS[2], 'pinned.role', ARGV[1])
  redis.call('HSETNX', KEYS[2], 'pinned.label', ARGV[1])
end
return 1
