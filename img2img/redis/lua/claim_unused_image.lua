-- Claims an input image for deletion, if its time is over and no unfinished job needs it.
-- ARGV: blob key, now, seconds that the deletion may take. Returns 1 or 0.
-- include: image_quota

local blob, now, deletion_s = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local kept_until = redis.call('ZSCORE', keys.INPUT_IMAGES, blob)
if not kept_until or tonumber(kept_until) > now then return 0 end
-- The end of the last job that needs the image adds it again.
if redis.call('HEXISTS', keys.INPUT_IMAGE_USES, blob) == 1 then
  redis.call('ZREM', keys.INPUT_IMAGES, blob)
  return 0
end
-- If the worker dies, the deletion is repeated.
redis.call('ZADD', keys.INPUT_IMAGES, now + deletion_s, blob)
remove_image_owners(blob)
redis.call('SET', key(keys.INPUT_IMAGE_DELETION, {key = blob}), 1, 'EX', deletion_s)
return 1
