-- Records the use of an API key, unless it was revoked since.
-- ARGV: id of the key, time in seconds.
-- include: keys

if redis.call('HEXISTS', keys.API_KEYS, ARGV[1]) == 1 then
  redis.call('HSET', keys.API_KEY_USES, ARGV[1], ARGV[2])
end
