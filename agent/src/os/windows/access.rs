//! Who may touch the agent's files: its owner, administrators and the system itself.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::windows::ffi::OsStrExt;
use std::path::Path;
use windows::Win32::Foundation::{HLOCAL, LocalFree};
use windows::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1, SE_FILE_OBJECT, SetNamedSecurityInfoW,
};
use windows::Win32::Security::{
    ACL, DACL_SECURITY_INFORMATION, GetSecurityDescriptorDacl, GetSecurityDescriptorOwner, OWNER_SECURITY_INFORMATION,
    PROTECTED_DACL_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR, PSID, SetFileSecurityW,
};
use windows::core::{BOOL, HSTRING, PCWSTR};

/// Nothing is inherited from above; the system, administrators and the owner have all rights.
const PRIVATE: &str = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;OW)";

/// As above without an owner of its own: what a service keeps belongs to administrators.
const SERVICE: &str = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)";

/// Writes a file that only its owner and administrators can read, and returns once it survives power loss.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    // Before there is anything in it to be read.
    restrict(path, PRIVATE)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a folder, and those above it; nobody but its owner and administrators can enter it. One that is
/// there stays as it is.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    restrict(path, PRIVATE)
}

/// Makes a folder where it is missing, and gives it and all that inherits from it to administrators and
/// the system alone.
pub(super) fn make_service_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    restrict(path, SERVICE)
}

/// Whether others may read this file: rights follow from the folder here, so nothing is said.
pub fn open_to_others(_path: &Path) -> bool {
    false
}

#[allow(unsafe_code)] // the descriptor is the system's memory until it is freed below
fn restrict(path: &Path, rights: &str) -> io::Result<()> {
    // An absolute path: the call knows no other.
    let path = std::path::absolute(path)?;
    let wide: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    let mut descriptor = PSECURITY_DESCRIPTOR::default();
    let (mut owner, mut list) = (PSID::default(), std::ptr::null_mut::<ACL>());
    let (mut present, mut by_default) = (BOOL(0), BOOL(0));
    let status = unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            &HSTRING::from(rights),
            SDDL_REVISION_1,
            &raw mut descriptor,
            None,
        )?;
        let asked = GetSecurityDescriptorDacl(descriptor, &raw mut present, &raw mut list, &raw mut by_default)
            .and_then(|()| GetSecurityDescriptorOwner(descriptor, &raw mut owner, &raw mut by_default));
        let status = asked.map(|()| {
            let mut what = DACL_SECURITY_INFORMATION | PROTECTED_DACL_SECURITY_INFORMATION;
            if !owner.is_invalid() {
                what |= OWNER_SECURITY_INFORMATION;
            }
            let owner = Some(owner).filter(|owner| !owner.is_invalid());
            // The first call tells what lies below as well; the second is there because wine takes the
            // first one's word that nothing is inherited for a wish to inherit.
            let name = PCWSTR(wide.as_ptr());
            match SetNamedSecurityInfoW(name, SE_FILE_OBJECT, what, owner, None, Some(list), None).0 {
                0 if SetFileSecurityW(name, what, descriptor).as_bool() => Ok(()),
                0 => Err(io::Error::last_os_error()),
                code => Err(io::Error::from_raw_os_error(code as i32)),
            }
        });
        LocalFree(Some(HLOCAL(descriptor.0)));
        status
    };
    status?.map_err(|fault| io::Error::new(fault.kind(), format!("cannot set who may use {}: {fault}", path.display())))
}
