"""What Redis does in one step: the Lua behind `records`, which names the keys."""

from img2img.redis.fair_queue_scripts import LINE_FUNCTIONS

# Moves a record to a new state if it is in one that allows the move and, where an execution is named, if that
# execution still owns it. Answers "ok", or what stood in the way: "missing", "lost" or the present status.
# A job that leaves the queue leaves the line; one that comes back joins it when RQ's list has it again. Whoever listens
# on the channel is told. An end that a webhook is to tell goes to the outbox, as a copy of the record: it may expire
# before it is told.
# KEYS: record, list of jobs, expiring, deadlines, uses of inputs, inputs, line, changes, outbox, counts of ends. ARGV:
# id, new status, statuses it may move from, owning execution or "", the time if the new state is terminal, "1" to count
# an attempt, then field, value, ...
MOVE = (
    LINE_FUNCTIONS
    + """
local id, to, now = ARGV[1], ARGV[2], tonumber(ARGV[5])
local had = redis.call('HMGET', KEYS[1], 'status', 'execution', 'created_at', 'result_ttl_s', 'inputs', 'model', 'cost',
  'priority', 'owner')
if not had[1] then return 'missing' end
if not string.find(',' .. ARGV[3] .. ',', ',' .. had[1] .. ',', 1, true) then return had[1] end
if ARGV[4] ~= '' and had[2] ~= ARGV[4] then return 'lost' end
redis.call('HSET', KEYS[1], 'status', to, unpack(ARGV, 7))
redis.call('ZREM', KEYS[2] .. ':' .. had[1], id)
redis.call('ZADD', KEYS[2] .. ':' .. to, had[3] or 0, id)  -- or: where nothing can be read, it still ends
if had[9] and had[9] ~= '' then
  local of = KEYS[2] .. ':of:' .. had[9] .. ':'
  redis.call('ZREM', of .. had[1], id)
  redis.call('ZADD', of .. to, had[3] or 0, id)
end
redis.call('HINCRBY', KEYS[1], 'revision', 1)
if ARGV[6] == '1' then redis.call('HINCRBY', KEYS[1], 'attempts', 1) end
if had[1] == 'queued' then
  leave(KEYS[7] .. ':' .. (had[6] or ''), id, had[8] or 'normal', had[9] or '', tonumber(had[7]) or 0)
end
if now then
  local kept_until = string.format('%.6f', now + (had[4] or 0))
  redis.call('HSET', KEYS[1], 'expires_at', kept_until)
  redis.call('ZADD', KEYS[3], kept_until, id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('HINCRBY', KEYS[10], to .. ' ' .. (had[6] or ''), 1)
  for input in string.gmatch(had[5] or '', '%S+') do
    if redis.call('HINCRBY', KEYS[5], input, -1) <= 0 then redis.call('HDEL', KEYS[5], input) end
    redis.call('ZADD', KEYS[6], 'GT', kept_until, input)
  end
  local told = redis.call('HGET', KEYS[1], 'webhook_on')
  if told and string.find(',' .. told .. ',', ',' .. to .. ',', 1, true) then
    redis.call('COPY', KEYS[1], KEYS[9] .. ':' .. id)
    redis.call('ZADD', KEYS[9], ARGV[5], id)
    redis.call('HSET', KEYS[1], 'delivery', '{"status":"pending","attempts":0}')
  end
end
redis.call('PUBLISH', KEYS[8], id .. ' ' .. to)
return 'ok'
"""
)

# Forgets a job that has ended; of one that is deleted nothing is told any more. KEYS: record, list of jobs, expiring,
# gone, changes, outbox. ARGV: id, why, seconds to remember it, when to look for its pictures once more or "". Answers
# 1, or 0 where there is no such job or it has not ended.
FORGET = """
local had = redis.call('HMGET', KEYS[1], 'status', 'owner')
local status, owner = had[1], had[2] or ''
if not status then
  redis.call('ZREM', KEYS[3], ARGV[1])
  return 0
end
if status == 'queued' or status == 'running' then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[2] .. ':' .. status, ARGV[1])
if owner ~= '' then
  redis.call('ZREM', KEYS[2] .. ':of:' .. owner, ARGV[1])
  redis.call('ZREM', KEYS[2] .. ':of:' .. owner .. ':' .. status, ARGV[1])
end
if ARGV[4] == '' then redis.call('ZREM', KEYS[3], ARGV[1]) else redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1]) end
redis.call('SET', KEYS[4], ARGV[2] .. ' ' .. owner, 'EX', ARGV[3])
if ARGV[2] == 'deleted' and redis.call('ZREM', KEYS[6], ARGV[1]) == 1 then
  redis.call('DEL', KEYS[6] .. ':' .. ARGV[1])
end
redis.call('PUBLISH', KEYS[5], ARGV[1])
return 1
"""

# Notes progress if the execution still owns a running record. KEYS: record, changes. ARGV: id, execution, step, steps.
PROGRESS = """
local now = redis.call('HMGET', KEYS[1], 'status', 'execution', 'step')
if now[1] ~= 'running' or now[2] ~= ARGV[2] then return 0 end
if now[3] ~= ARGV[3] then
  redis.call('HSET', KEYS[1], 'step', ARGV[3], 'steps', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'revision', 1)
  redis.call('PUBLISH', KEYS[2], ARGV[1])
end
return 1
"""
