#!/bin/sh
# Waits until the cloud says that it will take this spot machine, then drains its Ray node: trials there write a
# checkpoint at once and go on elsewhere. `spot_notice.sh aws` (two minutes ahead) or `spot_notice.sh gcp` (30 seconds).
set -eu

aws_says_so() {
    token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/latest/api/token") &&
        curl -sf -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $token" \
            "$metadata/latest/meta-data/spot/instance-action"
}

gcp_says_so() {
    test "$(curl -sf -m 2 -H 'Metadata-Flavor: Google' "$metadata/computeMetadata/v1/instance/preempted")" = TRUE
}

cloud=${1:?aws or gcp}
metadata=${METADATA_URL:-http://169.254.169.254} # both clouds serve it there
case $cloud in
aws) left_s=100 ;;
gcp) left_s=25 ;;
*) echo "the cloud must be aws or gcp, but is $cloud" >&2 && exit 2 ;;
esac

until "${cloud}_says_so"; do sleep "${LOOK_EVERY_S:-2}"; done
exec ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'spot notice' \
    --deadline-remaining-seconds "$left_s"
