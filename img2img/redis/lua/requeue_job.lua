-- Queues a job again, before all others of its model. Doing it twice is the same as doing it once.
-- KEYS: RQ's job hash, RQ's list of waiting jobs, RQ's set of queues, RQ's intermediate list.
-- ARGV: id; field, value, ... of RQ's job hash.
-- Returns 1, or 0 if the job is not waiting.
-- include: fair_queue

local id = ARGV[1]
local record = redis.call('HMGET', key(keys.JOB, {id = id}), 'status', 'model', 'priority', 'owner', 'cost')
local status, model, priority, owner, cost = unpack(record)
if status ~= 'queued' then return 0 end

redis.call('LREM', KEYS[4], 0, id)
redis.call('LREM', KEYS[2], 0, id)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('LPUSH', KEYS[2], id)
redis.call('SADD', KEYS[3], KEYS[2])
remove(model, id, priority or '', owner or '', cost)
enqueue(model, id, RETURNED, '', cost)
return 1
