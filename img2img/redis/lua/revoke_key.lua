-- Deletes an API key, and appends an entry to the audit log.
-- ARGV: id of the key, its data as they were read, about how many entries to keep, then field, value, ... of the entry.
-- Returns 1, or 0 if the key has changed since.
-- include: when_full

local id, data = ARGV[1], ARGV[2]
if redis.call('HGET', keys.API_KEYS, id) ~= data then return 0 end
allow_when_full()
redis.call('HDEL', keys.API_KEYS, id)
redis.call('HDEL', keys.API_KEY_USES, id)
redis.call('XADD', keys.AUDIT_LOG, 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
return 1
