-- Reserves the inputs of a job that will be submitted. An input that no job needs is deleted after some time.
-- ARGV: time of that deletion, generation of new inputs, blob key, ...
-- Returns for each input its generation, or '' if an earlier copy of it is being deleted.
-- include: keys

local delete_at, new_generation = ARGV[1], ARGV[2]

local function retain(blob)
  if redis.call('EXISTS', key(keys.INPUT_IMAGE_DELETION, {key = blob})) == 1 then return '' end
  local uses = key(keys.INPUT_IMAGE_USES, {key = blob})
  redis.call('HSETNX', uses, '#', new_generation)
  if redis.call('HLEN', uses) == 1 then redis.call('ZADD', keys.INPUT_IMAGES, 'GT', delete_at, blob) end
  return redis.call('HGET', uses, '#')
end

local generations = {}
for i = 3, #ARGV do generations[#generations + 1] = retain(ARGV[i]) end
return generations
