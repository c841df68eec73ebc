#!/bin/sh
# Build the container image, and put its SBOM into dist/: see `make image`.
#
# TOOL            docker, podman or buildah, with its global options
#                 (default: the first of them that works)
# BASE            the image to build on (default: see the Dockerfile)
# IMAGE, TAG      the name of the image (default: localhost/hsm-kms and the version)
# TARGET          runtime, or dev for the image with SoftHSM2 (default: runtime)
# BUILD_OPTIONS   more options of `TOOL build`
#
# With SOURCE_DATE_EPOCH set, no file in the image is newer than that.
set -eu
cd "${0%/*}/.."

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' hsm_kms/__init__.py)
target=${TARGET:-runtime}
suffix=
[ "$target" = runtime ] || suffix=-$target
# With a host part, the name means the same to docker, podman, buildah and the kubelet:
# without one, it is docker.io/library/... to some and localhost/... to others.
name=${IMAGE:-localhost/hsm-kms}:${TAG:-$version$suffix}
sbom=hsm-kms-${TAG:-$version$suffix}.cdx.json

# Print the first tool that works: a docker client alone builds nothing without its daemon.
choose() {
    for each in docker podman buildah; do
        command -v "$each" >/dev/null || continue
        if "$each" info >/dev/null 2>&1; then
            echo "$each"
            return
        fi
        echo "$each is installed, but does not work: $each info says why" >&2
    done
    echo 'make image needs docker with a running daemon, podman or buildah' >&2
    return 1
}

# Print the SBOM that is in the image.
show_sbom() {
    in_image=/usr/share/hsm-kms/hsm-kms.cdx.json
    case $tool in
    *buildah*)
        container=$($tool from --pull-never "$name")
        # buildah 1.28 can lose the output of a command that it runs and that ends at once.
        if [ "$(id -u)" -eq 0 ]; then
            cat "$($tool mount "$container")$in_image"
        else # shellcheck disable=SC2016 # the shell of unshare knows the variable
            $tool unshare --mount "root=$container" sh -c 'cat "$root$1"' sh "$in_image"
        fi
        $tool rm "$container" >/dev/null
        ;;
    *) $tool run --rm --network none --entrypoint cat "$name" "$in_image" ;;
    esac
}

tool=${TOOL:-$(choose)}
set -- --target "$target" --tag "$name" --label "org.opencontainers.image.version=$version"
[ -z "${BASE:-}" ] || set -- "$@" --build-arg "BASE=$BASE"
if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
    set -- "$@" --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH"
    case $tool in *docker*) ;; *) set -- "$@" --timestamp "$SOURCE_DATE_EPOCH" ;; esac
fi
if git diff --quiet HEAD 2>/dev/null; then
    set -- "$@" --label "org.opencontainers.image.revision=$(git rev-parse HEAD)"
fi
# shellcheck disable=SC2086 # both hold words
$tool build "$@" ${BUILD_OPTIONS:-} .
mkdir -p dist
show_sbom >"dist/$sbom"

echo "made $name with ${tool%% *}"
echo "what is in it: dist/$sbom"
if grep -q "image: $name\$" manifests/static-pod.yaml; then
    echo 'manifests/static-pod.yaml names this image'
else
    echo "in a pod's manifest, write: image: $name"
fi
