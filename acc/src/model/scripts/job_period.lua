-- The recurring_period of the command of the job KEYS[1], as text; false where there is none, or where the command is
-- longer than ARGV[1] bytes.
if redis.call('HSTRLEN', KEYS[1], 'cmd') > tonumber(ARGV[1]) then return false end
return string.match(redis.call('HGET', KEYS[1], 'cmd') or '', '"recurring_period": ?([%d.eE+]+)') or false
