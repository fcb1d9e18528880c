-- Removes the grants of a revoked node, and all that is known of its enrolment. KEYS: its grants, what is
-- known of its enrolment. ARGV: until when (ms) the credentials were issued that do not hold any more.
redis.call('DEL', KEYS[1], KEYS[2])
return redis.call('HSET', KEYS[2], 'revoked', ARGV[1])
