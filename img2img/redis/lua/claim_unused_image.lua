-- Claims an image for deletion, if its time is over for all owners and no job needs it.
-- ARGV: blob key, now, seconds that the deletion may take. Returns 1 or 0.
-- include: image_quota

local blob, now, deletion_s = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local delete_at = redis.call('ZSCORE', keys.INPUT_IMAGES, blob)
if not delete_at or tonumber(delete_at) > now then return 0 end
for _, owner in ipairs(redis.call('ZRANGEBYSCORE', uploads_of(blob), '-inf', now)) do
  redis.call('ZREM', uploads_of(blob), owner)
  discount_owner(blob, owner)
end
if redis.call('EXISTS', uploads_of(blob)) == 1 then
  schedule_deletion(blob)
  return 0
end
if count_users(blob) > 0 then
  redis.call('ZREM', keys.INPUT_IMAGES, blob)
  return 0
end
redis.call('DEL', uses_of(blob))
discount_image(blob)
redis.call('SET', key(keys.INPUT_IMAGE_DELETION, {key = blob}), 1, 'EX', deletion_s)
-- It stays listed until the deletion is confirmed: if the process dies before, the blob is due again.
redis.call('ZADD', keys.INPUT_IMAGES, now + deletion_s, blob)
return 1
