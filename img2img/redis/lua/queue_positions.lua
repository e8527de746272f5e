-- Counts the jobs ahead of waiting jobs, or of jobs that would be queued now.
-- ARGV: for each job its model, id or '' for a new one, priority, owner, cost, seconds to the deadline of a new one or ''.
-- Returns for each the number of jobs ahead and, as text, their cost; nothing if the job is not waiting.
-- include: fair_queue

-- The boundary of a search is given by at most this many jobs; they are then looked at one by one.
local FEW = 16
-- With waiting jobs of more owners, the order of another priority is not read: its jobs count with their mean work.
local MAX_OWNERS = 20

local function text(number)
  return string.format('%.17g', number)
end

-- Whether Redis orders one owner before another of the same score: by bytes, while `<` goes by the locale.
local function precedes(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

-- The waiting jobs of a level: of each owner the virtual time at which the first job starts, and the scores of the
-- first and of the next job. A job starts `score - first` after the first job of its owner.
local function read_level(model, level)
  local state = {model = model, level = level, owners = {}}
  local flat = redis.call('ZRANGE', owners_key(model, level), 0, -1, 'WITHSCORES')
  for i = 1, #flat, 2 do
    local jobs = jobs_key(model, level, flat[i])
    state.owners[#state.owners + 1] = {
      name = flat[i], jobs = jobs, start = tonumber(flat[i + 1]),
      first = tonumber(redis.call('ZRANGE', jobs, 0, 0, 'WITHSCORES')[2]),
    }
  end
  -- Lua limits the number of arguments of a call.
  for from = 1, #state.owners, 1000 do
    local fields, last = {}, math.min(from + 999, #state.owners)
    for i = from, last do fields[#fields + 1] = level .. ' next ' .. state.owners[i].name end
    local values = redis.call('HMGET', totals_key(model), unpack(fields))
    for i = from, last do
      local owner = state.owners[i]
      owner.next = tonumber(values[i - from + 1] or 0)
    end
  end
  return state
end

local function read_summary(model, level)
  local jobs, work, tag, highest = unpack(redis.call(
    'HMGET', totals_key(model), level .. ' jobs', level .. ' work', level .. ' tag', 'tag'))
  return {
    jobs = tonumber(jobs or 0), work = tonumber(work or 0), tag = tonumber(tag or highest or 0),
    owners = redis.call('ZCARD', owners_key(model, level)),
  }
end

-- Each is read once.
local function cached(read)
  local known = {}
  return function(model, level)
    local name = level .. ' ' .. model
    known[name] = known[name] or read(model, level)
    return known[name]
  end
end
local state_of, summary_of = cached(read_level), cached(read_summary)

-- Number and work of an owner's jobs that start before a virtual time, or also at that time.
local function jobs_before(owner, time, inclusive)
  if owner.start > time or (owner.start == time and not inclusive) then return 0, 0 end
  local limit = text(time - owner.start + owner.first)
  local count = redis.call('ZCOUNT', owner.jobs, '-inf', inclusive and limit or '(' .. limit)
  local following = redis.call('ZRANGE', owner.jobs, count, count, 'WITHSCORES')[2]
  return count, (following or owner.next) - owner.first
end

local function all_jobs_before(state, time)
  local count, work = 0, 0
  for _, owner in ipairs(state.owners) do
    local jobs, cost = jobs_before(owner, time)
    count, work = count + jobs, work + cost
  end
  return count, work
end

-- The jobs of a level that start between two virtual times, in the order in which they are taken.
local function jobs_between(state, from, to)
  local found = {}
  for _, owner in ipairs(state.owners) do
    local shift = owner.start - owner.first
    if owner.start < to then
      local flat = redis.call('ZRANGEBYSCORE', owner.jobs, text(from - shift), '+inf', 'WITHSCORES', 'LIMIT', 0, FEW + 1)
      for i = 1, #flat, 2 do
        local score = tonumber(flat[i + 1])
        if score + shift >= to then break end
        local work = (tonumber(flat[i + 3]) or owner.next) - score
        found[#found + 1] = {start = score + shift, owner = owner.name, work = work}
      end
    end
  end
  table.sort(found, function(one, other)
    if one.start ~= other.start then return one.start < other.start end
    return precedes(one.owner, other.owner)
  end)
  return found
end

-- Number and work of the first jobs of a level that take no more than some work together, or also the job after them.
local function jobs_within(model, level, limit, and_next)
  local summary = summary_of(model, level)
  if limit < 0 or summary.jobs == 0 then return 0, 0 end
  if limit >= summary.work then return summary.jobs, summary.work end
  if summary.owners > MAX_OWNERS then return math.floor(summary.jobs * limit / summary.work), limit end
  local state = state_of(model, level)
  local low, low_count, low_work = math.huge, 0, 0
  local high, high_count, high_work = -math.huge, summary.jobs, summary.work
  for _, owner in ipairs(state.owners) do
    low = math.min(low, owner.start)
    high = math.max(high, owner.start + owner.next - owner.first)
  end
  local bisect = false
  while high_count - low_count > FEW and high - low > 1 do
    local part = bisect and 0.5 or (limit - low_work) / (high_work - low_work)
    local middle = math.max(low + 1, math.min(high - 1, math.floor(low + (high - low) * part)))
    local count, work = all_jobs_before(state, middle)
    if work <= limit then
      low, low_count, low_work = middle, count, work
    else
      high, high_count, high_work = middle, count, work
    end
    bisect = not bisect
  end
  for _, job in ipairs(jobs_between(state, low, high)) do
    local exceeds = low_work + job.work > limit
    if exceeds and not and_next then break end
    low_count, low_work = low_count + 1, low_work + job.work
    if exceeds then break end
  end
  return low_count, low_work
end

-- The time at which a job is due that is submitted now.
local function due_of_new(deadline_s)
  if deadline_s == '' then return math.huge end
  local seconds, microseconds = unpack(redis.call('TIME'))
  local now = seconds + microseconds / 1e6
  return due_at(now, now + deadline_s)
end

-- Jobs ahead on the own level, or nil if the job is not waiting.
local function jobs_of_level(state, id, name, deadline_s)
  local own
  for _, owner in ipairs(state.owners) do
    if owner.name == name then own = owner end
  end
  local score = id ~= '' and redis.call('ZSCORE', jobs_key(state.model, state.level, name), id)
  if id ~= '' and not (own and score) then return nil end
  local start, count, work = nil, 0, 0
  if own then
    if id == '' then
      count = rank_of_due(own.jobs, due_of_new(deadline_s))
      score = redis.call('ZRANGE', own.jobs, count, count, 'WITHSCORES')[2]
    else
      count = redis.call('ZRANK', own.jobs, id)
    end
    work = (score or own.next) - own.first
    start = own.start + work
  else
    start = start_of(state.model, state.level, name)
  end
  for _, owner in ipairs(state.owners) do
    if owner ~= own then
      local jobs, cost = jobs_before(owner, start, precedes(owner.name, name))
      count, work = count + jobs, work + cost
    end
  end
  return count, work
end

-- Jobs ahead on the other levels: those whose turn is earlier. See `next_level` in claim_job.lua.
local function add_other_levels(model, own_level, count, work, own_work)
  local turn = turn_of(own_level, summary_of(model, own_level).tag + work * PACE[own_level], own_work)
  local is_higher = true
  for _, level in ipairs(LEVELS) do
    local other = summary_of(model, level)
    if level == own_level then
      is_higher = false
    else
      local jobs, cost
      if level == RETURNED then
        jobs, cost = other.jobs, other.work
      elseif level == 'high' then
        jobs, cost = jobs_within(model, level, math.ceil(turn - other.tag) - 1, true)
      else
        local limit = (turn - other.tag) / PACE[level]
        local ties = is_higher or own_level == 'high'
        jobs, cost = jobs_within(model, level, ties and math.floor(limit) or math.ceil(limit) - 1)
      end
      count, work = count + jobs, work + cost
    end
  end
  return count, work
end

local function position(model, id, level, owner, cost, deadline_s)
  local count, work
  if id ~= '' and has_jobs(model, RETURNED) then count, work = jobs_of_level(state_of(model, RETURNED), id, '') end
  if not count then
    count, work = jobs_of_level(state_of(model, level), id, owner, deadline_s)
    if not count then return false end
    count, work = add_other_levels(model, level, count, work, work_of(cost))
  end
  return {count, text(math.max(work, 0) / PIXEL_STEPS)}
end

local positions = {}
for i = 1, #ARGV, 6 do
  positions[#positions + 1] = position(unpack(ARGV, i, i + 5))
end
return positions
