"""The one package that knows libvirt and QEMU's monitor."""
