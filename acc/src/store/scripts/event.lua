-- Adds the events ARGV[3…] to the list KEYS[1], which holds at most ARGV[1] entries and ARGV[2] bytes; KEYS[2] has
-- how many there were.
return push_bounded(KEYS[1], KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2]), 3, #ARGV)
