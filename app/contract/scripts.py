"""What Redis does in one step: the Lua behind `records`, which names the keys."""

# Moves a record to a new state if it is in one that allows the move and, where an execution is named, if that
# execution still owns it. Answers "ok", or what stood in the way: "missing", "lost" or the present status.
# A job that comes back to the queue stands at the front of the line. Whoever listens on the channel is told.
# An end that a webhook is to tell goes to the outbox, as a copy of the record: it may expire before it is told.
# KEYS: record, list of jobs, expiring, deadlines, uses of inputs, inputs, line, changes, outbox. ARGV: id, new status,
# statuses it may move from, owning execution or "", the time if the new state is terminal, "1" to count an attempt,
# then field, value, ...
MOVE = """
local id, to, now = ARGV[1], ARGV[2], tonumber(ARGV[5])
local had = redis.call('HMGET', KEYS[1], 'status', 'execution', 'created_at', 'result_ttl_s', 'input', 'model', 'cost')
if not had[1] then return 'missing' end
if not string.find(',' .. ARGV[3] .. ',', ',' .. had[1] .. ',', 1, true) then return had[1] end
if ARGV[4] ~= '' and had[2] ~= ARGV[4] then return 'lost' end
redis.call('HSET', KEYS[1], 'status', to, unpack(ARGV, 7))
redis.call('ZREM', KEYS[2] .. ':' .. had[1], id)
redis.call('ZADD', KEYS[2] .. ':' .. to, had[3] or 0, id)  -- or: where nothing can be read, it still ends
redis.call('HINCRBY', KEYS[1], 'revision', 1)
if ARGV[6] == '1' then redis.call('HINCRBY', KEYS[1], 'attempts', 1) end
local line = KEYS[7] .. ':' .. (had[6] or '')
if had[1] == 'queued' and redis.call('ZREM', line, id) == 1 then
  redis.call('HINCRBYFLOAT', line .. ':cost', 'all', '-' .. had[7])
elseif to == 'queued' then
  local first = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
  redis.call('ZADD', line, (first[2] or 0) - had[7], id)
  redis.call('HINCRBYFLOAT', line .. ':cost', 'all', had[7])
end
if redis.call('ZCARD', line) == 0 then redis.call('DEL', line .. ':cost') end
if now then
  local kept_until = string.format('%.6f', now + (had[4] or 0))
  redis.call('HSET', KEYS[1], 'expires_at', kept_until)
  redis.call('ZADD', KEYS[3], kept_until, id)
  redis.call('ZREM', KEYS[4], id)
  if had[5] then
    if redis.call('HINCRBY', KEYS[5], had[5], -1) <= 0 then redis.call('HDEL', KEYS[5], had[5]) end
    redis.call('ZADD', KEYS[6], 'GT', kept_until, had[5])
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

# Forgets a job that has ended; of one that is deleted nothing is told any more. KEYS: record, list of jobs, expiring,
# gone, changes, outbox. ARGV: id, why, seconds to remember it, when to look for its pictures once more or "". Answers
# 1, or 0 where there is no such job or it has not ended.
FORGET = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then
  redis.call('ZREM', KEYS[3], ARGV[1])
  return 0
end
if status == 'queued' or status == 'running' then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[2] .. ':' .. status, ARGV[1])
if ARGV[4] == '' then redis.call('ZREM', KEYS[3], ARGV[1]) else redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1]) end
redis.call('SET', KEYS[4], ARGV[2], 'EX', ARGV[3])
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

# Puts a job at the end of its line. A line is a measuring tape: the score of a job is the cost of all that came before
# it. KEYS: line. ARGV: id, cost.
JOIN = """
local came = redis.call('HINCRBYFLOAT', KEYS[1] .. ':cost', 'came', ARGV[2])
redis.call('ZADD', KEYS[1], came - ARGV[2], ARGV[1])
redis.call('HINCRBYFLOAT', KEYS[1] .. ':cost', 'all', ARGV[2])
"""

# Where a job stands. KEYS: line. ARGV: id. Answers its rank, its score, the first one's score, then `came` and `all`.
STAND = """
local rank = redis.call('ZRANK', KEYS[1], ARGV[1])
if not rank then return false end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local cost = redis.call('HMGET', KEYS[1] .. ':cost', 'came', 'all')
return {rank, redis.call('ZSCORE', KEYS[1], ARGV[1]), first[2], cost[1] or '0', cost[2] or '0'}
"""
