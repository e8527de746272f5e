-- Keeps an uploaded image at least until a given time.
-- ARGV: time, owner, blob key. Returns 1, or 0 if an earlier copy of the image is being deleted.
-- include: keys

local kept_until, owner, blob = ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', key(keys.INPUT_IMAGE_DELETION, {key = blob})) == 1 then return 0 end
redis.call('ZADD', key(keys.UPLOAD_OWNERS, {key = blob}), 'GT', kept_until, owner)
redis.call('ZADD', keys.INPUT_IMAGES, 'GT', kept_until, blob)
return 1
