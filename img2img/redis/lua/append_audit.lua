-- Appends an entry to the audit log. ARGV: about how many entries to keep, then field, value, ...
-- include: when_full

allow_when_full()
redis.call('XADD', keys.AUDIT_LOG, 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
