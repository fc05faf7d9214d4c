#!/usr/bin/env bash
# The Debian packages that cpp/ is built with: installed where this is root, else named.
set -euo pipefail

packages=(
  cmake ninja-build g++ pkg-config
  libjpeg62-turbo-dev libpng-dev       # image files
  nlohmann-json3-dev                   # sidecars
  libcpp-httplib-dev                   # the server; brings OpenSSL, zlib and brotli
)

if ! command -v dpkg-query > /dev/null; then
  echo "error: these are Debian packages, and this is no Debian system: ${packages[*]}" >&2
  exit 4
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

if [[ $(id -u) != 0 ]]; then
  echo "error: missing Debian packages; install them with" >&2
  echo "  sudo apt-get install --yes ${missing[*]}" >&2
  exit 4
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --yes --quiet=2 --no-install-recommends "${missing[@]}"
