-- Counts the jobs ahead of waiting jobs, or of jobs that would be queued now.
-- ARGV: for each job its model, id or '' for a new one, priority, owner, cost.
-- Returns for each the number of jobs ahead and, as text, their cost; nothing if the job is not waiting.
-- include: fair_queue

local model, id, level, owner, cost

-- Number and cost of the waiting jobs, and the streak, of each level.
local function read_totals()
  local fields = {}
  for _, name in ipairs(LEVELS) do
    for _, total in ipairs({'jobs', 'cost', 'streak'}) do fields[#fields + 1] = name .. ' ' .. total end
  end
  local values = redis.call('HMGET', totals_key(model), unpack(fields))
  local totals = {}
  for i, name in ipairs(LEVELS) do
    local jobs, work, streak = values[3 * i - 2], values[3 * i - 1], values[3 * i]
    totals[name] = {jobs = tonumber(jobs or 0), cost = tonumber(work or 0), streak = tonumber(streak or 0)}
  end
  return totals
end

-- The totals of owners on the level: the score of the next job, and the cost of the waiting jobs.
local function read_owner_totals(owners)
  local totals, key_of_totals = {}, totals_key(model)
  -- Lua limits the number of arguments of a call.
  for from = 1, #owners, 1000 do
    local fields = {}
    for i = from, math.min(from + 999, #owners) do
      fields[#fields + 1], fields[#fields + 2] = level .. ' end ' .. owners[i], level .. ' cost ' .. owners[i]
    end
    local values = redis.call('HMGET', key_of_totals, unpack(fields))
    for i = 1, #fields / 2 do
      totals[owners[from + i - 1]] = {next_score = values[2 * i - 1] or 0, cost = tonumber(values[2 * i] or 0)}
    end
  end
  return totals
end

-- Returns the number and the cost of an owner's first `count` jobs. Scores still include the cost of jobs that were
-- cancelled while they waited. The totals do not, so the difference is spread evenly over the owner's jobs.
-- own_cost: cost of the job of which the position is asked, if it is the owner's; it is known exactly.
local function first_jobs(totals, other, count, own_cost)
  if count <= 0 then return 0, 0 end
  local jobs = jobs_key(model, level, other)
  local after = redis.call('ZRANGE', jobs, count, count, 'WITHSCORES')[2]
  if not after then return redis.call('ZCARD', jobs), totals.cost end
  local first = redis.call('ZRANGE', jobs, 0, 0, 'WITHSCORES')[2]
  local scored = totals.next_score - first - own_cost
  local share = scored > 0 and (totals.cost - own_cost) / scored or 1
  return count, (after - first) * math.min(share, 1)
end

-- Jobs of the own level: owners take turns, so those with an earlier turn have one more job ahead.
local function jobs_of_level()
  local jobs = jobs_key(model, level, owner)
  local rank
  if id == '' then rank, cost = redis.call('ZCARD', jobs), 0 else rank = redis.call('ZRANK', jobs, id) end
  if not rank then return nil end
  local owners = redis.call('ZRANGE', owners_key(model, level), 0, -1)
  local totals = read_owner_totals(owners)
  local count, work = 0, 0
  local rounds = rank + 1
  for _, other in ipairs(owners) do
    if other == owner then rounds = rank end
    local jobs_ahead, work_ahead = first_jobs(totals[other], other, rounds, other == owner and cost or 0)
    count, work = count + jobs_ahead, work + work_ahead
  end
  return count, work
end

-- Jobs of lower levels: one passes whenever the level reaches its streak limit. Its cost is taken as their mean.
local function add_jobs_below(totals, depth, count, work)
  if level == RETURNED then return count, work end
  local below_count, below_work = 0, 0
  for i = depth + 1, #LEVELS do
    below_count, below_work = below_count + totals[LEVELS[i]].jobs, below_work + totals[LEVELS[i]].cost
  end
  local passes = math.min(below_count, math.floor((totals[level].streak + count) / STREAK_LIMIT))
  if passes <= 0 then return count, work end
  return count + passes, work + below_work * passes / below_count
end

-- Jobs of higher levels: STREAK_LIMIT for each job of the lower one, as long as there are any.
local function add_jobs_above(totals, depth, count, work)
  local jobs_below = 0
  for i = depth, #LEVELS do jobs_below = jobs_below + totals[LEVELS[i]].jobs end
  for i = depth - 1, 1, -1 do
    local above = totals[LEVELS[i]]
    local before = above.jobs
    -- A new job starts the streak if no job waits below; then the waiting ones do not count.
    if LEVELS[i] ~= RETURNED and (id ~= '' or jobs_below > 0) then
      before = math.min(above.jobs, (count + 1) * STREAK_LIMIT - above.streak)
    end
    if before > 0 then count, work = count + before, work + above.cost * before / above.jobs end
    jobs_below = jobs_below + above.jobs
  end
  return count, work
end

local function position()
  local totals = read_totals()
  if id ~= '' and totals[RETURNED].jobs > 0 and redis.call('ZSCORE', jobs_key(model, RETURNED, ''), id) then
    level, owner = RETURNED, ''
  end
  local count, work = jobs_of_level()
  if not count then return false end
  local depth
  for i, name in ipairs(LEVELS) do if name == level then depth = i end end
  count, work = add_jobs_below(totals, depth, count, work)
  count, work = add_jobs_above(totals, depth, count, work)
  return {count, string.format('%.17g', math.max(work, 0))}
end

local positions = {}
for i = 1, #ARGV, 5 do
  model, id, level, owner, cost = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4])
  positions[#positions + 1] = position()
end
return positions
