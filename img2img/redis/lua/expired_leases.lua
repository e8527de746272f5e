-- KEYS: RQ's registry of leases. Returns the entries whose lease has expired by Redis' clock.

local seconds, microseconds = unpack(redis.call('TIME'))
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', seconds + microseconds / 1e6))
