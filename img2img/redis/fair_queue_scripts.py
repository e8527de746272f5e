"""The order of waiting jobs, in Lua: the script behind `line`, which says what the order is and names the keys.

Of each model Redis keeps, under its line's key:
- :{priority}, sorted set: the ring of owners who have jobs waiting, whose turn it is first;
- :{priority}:{owner}, sorted set: an owner's waiting jobs. It is a measuring tape: the score of a job is the cost of
  all that this owner queued before it;
- :sums, hash: `{priority} jobs`, `{priority} cost` of those who wait, `{priority} taken` jobs in a row while lower ones
  waited (below 0: how many are to be taken before that counts), `{priority} cost {owner}`, and
  `{priority} came {owner}`: where the tape ends.
An empty line leaves nothing behind.
"""

from img2img.domain.job import Priority

RETURNED = "returned"  # above all priorities: jobs that a worker had and lost, whoever owns them, the last one first
IN_A_ROW = 7  # jobs of one priority, before one from below it has its turn
LOOKED_AT = 16  # owners before and behind a job in the ring whose jobs are counted one by one; others are like them

LEVELS = (RETURNED, *reversed(Priority))  # highest first
_ORDER = ", ".join(f"'{name}'" for name in LEVELS)

LINE_FUNCTIONS = f"""
local PRIORITIES, RETURNED, IN_A_ROW, LOOKED_AT = {{{_ORDER}}}, '{RETURNED}', {IN_A_ROW}, {LOOKED_AT}
"""

LINE_FUNCTIONS += """
local function ring_of(line, priority) return line .. ':' .. priority end
local function tape_of(line, priority, owner) return line .. ':' .. priority .. ':' .. owner end
local function sums_of(line) return line .. ':sums' end

local function to_end_of_ring(ring, owner)
  local last = redis.call('ZRANGE', ring, -1, -1, 'WITHSCORES')
  redis.call('ZADD', ring, (last[2] or 0) + 1, owner)
end

-- Whether a job of a lower priority waits.
local function lower_waits(line, priority)
  local lower = false
  for _, name in ipairs(PRIORITIES) do
    if lower and redis.call('EXISTS', ring_of(line, name)) == 1 then return true end
    lower = lower or name == priority
  end
  return false
end

local function join(line, id, priority, owner, cost, at_front)
  local ring, tape, sums = ring_of(line, priority), tape_of(line, priority, owner), sums_of(line)
  for _, above in ipairs(PRIORITIES) do
    if priority == RETURNED or above == priority then break end
    if above ~= RETURNED and redis.call('EXISTS', ring_of(line, above)) == 1 and not lower_waits(line, above) then
      redis.call('HSET', sums, above .. ' taken', -redis.call('HGET', sums, above .. ' jobs'))
    end
  end
  if at_front then
    local first = redis.call('ZRANGE', tape, 0, 0, 'WITHSCORES')
    redis.call('ZADD', tape, (first[2] or 0) - cost, id)
  else
    local came = redis.call('HINCRBYFLOAT', sums, priority .. ' came ' .. owner, cost)
    redis.call('ZADD', tape, came - cost, id)
  end
  if not redis.call('ZSCORE', ring, owner) then to_end_of_ring(ring, owner) end
  redis.call('HINCRBY', sums, priority .. ' jobs', 1)
  redis.call('HINCRBYFLOAT', sums, priority .. ' cost', cost)
  redis.call('HINCRBYFLOAT', sums, priority .. ' cost ' .. owner, cost)
end

local function remove(line, id, priority, owner, cost)
  local ring, tape, sums = ring_of(line, priority), tape_of(line, priority, owner), sums_of(line)
  if redis.call('ZREM', tape, id) == 0 then return false end
  redis.call('HINCRBY', sums, priority .. ' jobs', -1)
  redis.call('HINCRBYFLOAT', sums, priority .. ' cost', -cost)
  redis.call('HINCRBYFLOAT', sums, priority .. ' cost ' .. owner, -cost)
  if redis.call('EXISTS', tape) == 0 then
    redis.call('HDEL', sums, priority .. ' came ' .. owner, priority .. ' cost ' .. owner)
    redis.call('ZREM', ring, owner)
  end
  if redis.call('EXISTS', ring) == 0 then
    redis.call('HDEL', sums, priority .. ' jobs', priority .. ' cost', priority .. ' taken')
  end
  return true
end

-- Takes a job out of the line, wherever it stands.
local function leave(line, id, priority, owner, cost)
  return remove(line, id, RETURNED, '', cost) or remove(line, id, priority, owner, cost)
end
"""

# Puts a new job into its line. KEYS: line. ARGV: id, priority, owner, cost.
JOIN = LINE_FUNCTIONS + "join(KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]))"

# Puts a job that is queued again before all others. KEYS: line, record. ARGV: id.
REJOIN = (
    LINE_FUNCTIONS
    + """
local had = redis.call('HMGET', KEYS[2], 'status', 'priority', 'owner', 'cost')
if had[1] ~= 'queued' then return end  -- it has ended meanwhile
local cost = tonumber(had[4]) or 0
leave(KEYS[1], ARGV[1], had[2] or 'normal', had[3] or '', cost)
join(KEYS[1], ARGV[1], RETURNED, '', cost, true)
"""
)

# Puts a job that waits in RQ's list and stands in no line where it belongs, behind all others. KEYS: line, record, RQ's
# list. ARGV: id, cost. Answers 1, or 0 where there was nothing to do.
ADOPT = (
    LINE_FUNCTIONS
    + """
local line, record, list, id, cost = KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2])
local had = redis.call('HMGET', record, 'status', 'priority', 'owner')
local priority, owner = had[2] or 'normal', had[3] or ''
if had[1] ~= 'queued' or not redis.call('LPOS', list, id) then return 0 end
if redis.call('ZSCORE', tape_of(line, RETURNED, ''), id) then return 0 end
if redis.call('ZSCORE', tape_of(line, priority, owner), id) then return 0 end
redis.call('HSET', record, 'cost', cost)
join(line, id, priority, owner, cost)
return 1
"""
)

# Takes the job whose turn it is out of the line, and moves it from RQ's list to the intermediate list. All or nothing,
# as LMOVE: a job is always in one of the two. Answers its id, or nothing.
# What stands in the list but not in the line (pushed by RQ's own tools, or half put back) goes when it is the first of
# the list: the line would never call it. What the line calls but is not in the list goes nowhere; the sweeper finds it.
# KEYS: RQ's list, its intermediate list, line. ARGV: what the key of a record begins with.
CLAIM = (
    LINE_FUNCTIONS
    + """
local list, intermediate, line = KEYS[1], KEYS[2], KEYS[3]
local sums = sums_of(line)

local function stands_in_line(id)
  local had = redis.call('HMGET', ARGV[1] .. id, 'priority', 'owner')
  return redis.call('ZSCORE', tape_of(line, RETURNED, ''), id)
    or redis.call('ZSCORE', tape_of(line, had[1] or 'normal', had[2] or ''), id)
end

-- The highest priority that waits; but one that had its jobs in a row lets one from below pass.
local function whose_turn()
  local turn
  for _, priority in ipairs(PRIORITIES) do
    if redis.call('EXISTS', ring_of(line, priority)) == 1 then
      turn = priority
      if tonumber(redis.call('HGET', sums, priority .. ' taken') or 0) < IN_A_ROW then break end
    end
  end
  return turn
end

-- Whether a job is nearer to the end of RQ's list than to its front, by when it came. It is searched from there.
local function is_young(id)
  local function came_at(job) return tonumber(redis.call('HGET', ARGV[1] .. job, 'created_at') or 0) end
  return came_at(id) - came_at(redis.call('LINDEX', list, 0)) > came_at(redis.call('LINDEX', list, -1)) - came_at(id)
end

local function count_taken(taken)
  if taken == RETURNED then return end
  for _, above in ipairs(PRIORITIES) do
    if above == taken then break end
    redis.call('HDEL', sums, above .. ' taken')
  end
  if lower_waits(line, taken) and redis.call('EXISTS', ring_of(line, taken)) == 1 then
    redis.call('HINCRBY', sums, taken .. ' taken', 1)
  else
    redis.call('HDEL', sums, taken .. ' taken')
  end
end

local first = redis.call('LINDEX', list, 0)
if not first then return false end
if not stands_in_line(first) then return redis.call('LMOVE', list, intermediate, 'LEFT', 'RIGHT') end

while true do
  local priority = whose_turn()
  if not priority then return false end
  local ring = ring_of(line, priority)
  local owner = redis.call('ZRANGE', ring, 0, 0)[1]
  local id = redis.call('ZRANGE', tape_of(line, priority, owner), 0, 0)[1]
  remove(line, id, priority, owner, tonumber(redis.call('HGET', ARGV[1] .. id, 'cost') or 0))
  if redis.call('LREM', list, is_young(id) and -1 or 1, id) == 1 then
    redis.call('RPUSH', intermediate, id)
    if redis.call('ZSCORE', ring, owner) then to_end_of_ring(ring, owner) end
    count_taken(priority)
    return id
  end
end
"""
)

# Where a job stands, or would if it came now. KEYS: line. ARGV: id or "", priority, owner, cost.
# Answers how many jobs are ahead and what they cost, as text; nothing where the job is not in the line.
STAND = (
    LINE_FUNCTIONS
    + """
local line, id, priority, owner, cost = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local sums = sums_of(line)

local function sum(name) return tonumber(redis.call('HGET', sums, name) or 0) end

-- An owner's first `count` jobs, without the job that asks, and their cost. Jobs that were cancelled while they waited
-- have left gaps on the tape. What really waits is known in sum; the gaps are taken to be spread evenly.
local function first_jobs(owner, count, own)
  local tape = tape_of(line, priority, owner)
  local waiting = redis.call('ZCARD', tape)
  if count <= 0 then return 0, 0 end
  if count >= waiting then return waiting, sum(priority .. ' cost ' .. owner) end
  local sums_of_owner = redis.call('HMGET', sums, priority .. ' came ' .. owner, priority .. ' cost ' .. owner)
  local from = redis.call('ZRANGE', tape, 0, 0, 'WITHSCORES')[2]
  local to = redis.call('ZRANGE', tape, count, count, 'WITHSCORES')[2]
  local others = (sums_of_owner[1] or 0) - from - own
  local real = others > 0 and ((sums_of_owner[2] or 0) - own) / others or 1
  return count, (to - from) * math.min(real, 1)
end

-- The same, summed over the owners at these places of the ring.
local function jobs_of(from, to, count)
  if to < from or count <= 0 then return 0, 0 end
  local jobs, work = 0, 0
  local owners = redis.call('ZRANGE', ring_of(line, priority), from, math.min(to, from + LOOKED_AT - 1))
  for _, other in ipairs(owners) do
    local n, c = first_jobs(other, count, 0)
    jobs, work = jobs + n, work + c
  end
  local scale = (to - from + 1) / #owners
  return jobs * scale, work * scale
end

local function of_priority(name) return sum(name .. ' jobs'), sum(name .. ' cost') end

-- Within its priority.
if id ~= '' and redis.call('ZSCORE', tape_of(line, RETURNED, ''), id) then priority, owner = RETURNED, '' end
local tape, ring = tape_of(line, priority, owner), ring_of(line, priority)
local at
if id == '' then at, cost = redis.call('ZCARD', tape), 0 else at = redis.call('ZRANK', tape, id) end
if not at then return false end
local owners = redis.call('ZCARD', ring)
local turn = redis.call('ZRANK', ring, owner) or owners
local jobs, work = first_jobs(owner, at, cost)
local sooner_jobs, sooner_work = jobs_of(0, turn - 1, at + 1)
local later_jobs, later_work = jobs_of(turn + 1, owners - 1, at)
jobs, work = jobs + sooner_jobs + later_jobs, work + sooner_work + later_work

-- Those from below that are let pass. Here and further down, the cost of some jobs of a priority is their share of all.
local place
for i, name in ipairs(PRIORITIES) do if name == priority then place = i end end
if priority ~= RETURNED then
  local below_jobs, below_work = 0, 0
  for i = place + 1, #PRIORITIES do
    local n, c = of_priority(PRIORITIES[i])
    below_jobs, below_work = below_jobs + n, below_work + c
  end
  local passes = math.min(below_jobs, math.floor((sum(priority .. ' taken') + jobs) / IN_A_ROW))  -- or below 0
  if passes > 0 then jobs, work = jobs + passes, work + below_work * passes / below_jobs end
end

-- Those from above: IN_A_ROW for each job from below, as long as there are any.
for i = place - 1, 1, -1 do
  local above = PRIORITIES[i]
  local n, c = of_priority(above)
  local before = n
  if above ~= RETURNED and (id ~= '' or lower_waits(line, above)) then
    before = math.min(n, (jobs + 1) * IN_A_ROW - sum(above .. ' taken'))
  end
  if before > 0 then jobs, work = jobs + before, work + c * before / n end
end
return {math.floor(jobs + 0.5), string.format('%.17g', math.max(work, 0))}
"""
)
