-- Writes down in KEYS[1] that the stream ARGV[1] takes ARGV[2] bytes.
account(KEYS[1], ARGV[1], tonumber(ARGV[2]))
