-- Queues copies of a queued job with other ids, images, owners and priorities.
-- KEYS: RQ's hash of the job, RQ's list of waiting jobs.
-- ARGV: number of copies, salt of their ids, creation time, id and image of the job, number of owners, model, cost,
--   then priorities to choose from.
-- include: fair_queue
-- include: job_indices

local salt, created_at, template, image, owners = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local model, cost = ARGV[7], tonumber(ARGV[8])
local source = key(keys.JOB, {id = template})
local spec = redis.call('HGET', source, 'spec')
for i = 1, tonumber(ARGV[1]) do
  local digest = redis.sha1hex(salt .. i)
  local id, copied_image = string.sub(digest, 1, 32), string.sub(digest .. redis.sha1hex(digest), 1, 64)
  local owner = string.format('%012x', math.random(0, owners - 1))
  local priority = ARGV[math.random(9, #ARGV)]
  local record, now = key(keys.JOB, {id = id}), created_at + i / 1e4
  local input = 'inputs/' .. copied_image .. '.png'
  redis.call('COPY', KEYS[1], (string.gsub(KEYS[1], template, id)))
  redis.call('COPY', source, record)
  redis.call('HSET', record, 'spec', (string.gsub(spec, image, copied_image)), 'inputs', input, 'owner', owner,
    'priority', priority, 'created_at', now)
  for _, index in ipairs(indices_of_all(owner)) do redis.call('ZADD', index, now, id) end
  for _, index in ipairs(indices_by_status('queued', owner)) do redis.call('ZADD', index, now, id) end
  local uses = key(keys.INPUT_IMAGE_USES, {key = input})
  redis.call('HSET', uses, '#', redis.sha1hex(digest), owner, 1)
  redis.call('RPUSH', KEYS[2], id)
  enqueue(model, id, priority, owner, cost, due_at(now))
end
