-- Makes those inputs due for deletion that no job needs.
-- ARGV: blob key, ...
-- include: when_full

allow_when_full()
for _, blob in ipairs(ARGV) do redis.call('ZADD', keys.INPUT_IMAGES, 'XX', 0, blob) end
