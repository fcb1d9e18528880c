//! Limits access to the agent's files to their owner, administrators and the system itself.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::{Path, PathBuf};
use windows::Win32::Foundation::{HANDLE, HLOCAL, LocalFree};
use windows::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, GetSecurityInfo, SDDL_REVISION_1, SE_FILE_OBJECT,
    SetNamedSecurityInfoW,
};
use windows::Win32::Security::{
    ACCESS_ALLOWED_ACE, ACL, DACL_SECURITY_INFORMATION, EqualSid, GetAce, GetSecurityDescriptorDacl,
    GetSecurityDescriptorOwner, GetTokenInformation, INHERIT_ONLY_ACE, IsWellKnownSid, OWNER_SECURITY_INFORMATION,
    PROTECTED_DACL_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR, PSID, SetFileSecurityW, TOKEN_QUERY, TOKEN_USER,
    TokenUser, WinAnonymousSid, WinAuthenticatedUserSid, WinBuiltinAdministratorsSid, WinBuiltinGuestsSid,
    WinBuiltinUsersSid, WinInteractiveSid, WinLocalSystemSid, WinNetworkSid, WinWorldSid,
};
use windows::Win32::System::SystemServices::ACCESS_ALLOWED_ACE_TYPE;
use windows::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};
use windows::core::{BOOL, HSTRING, PCWSTR};

/// Nothing is inherited from above; the system, administrators and the owner have all rights.
const PRIVATE: &str = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;OW)";

/// As above without an owner of its own: what a service keeps belongs to administrators.
const SERVICE: &str = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)";

/// `%ProgramData%`.
pub(super) fn program_data() -> PathBuf {
    std::env::var_os("ProgramData").map_or_else(|| PathBuf::from("C:\\ProgramData"), PathBuf::from)
}

/// Writes a file that only its owner and administrators can read, and returns once it survives power loss.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    // Before there is anything in it to be read.
    restrict(path, PRIVATE)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Opens a file to be read and written, and makes it where it is not there; its rights follow from its folder.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Does nothing: NTFS brings the names of a folder to the disk in the order of their changes.
pub(crate) fn sync_dir(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Makes a folder, and those above it; nobody but its owner and administrators can enter it. One that is
/// there stays as it is; below ProgramData it is refused when it is another user's.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    let was_there = path.is_dir();
    fs::create_dir_all(path)?;
    refuse_foreign(path)?;
    if was_there { Ok(()) } else { restrict(path, PRIVATE) }
}

/// Makes a folder where it is missing, and gives it and all that inherits from it to administrators and
/// the system alone. Below ProgramData it is refused when it is another user's.
pub(super) fn make_service_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    refuse_foreign(path)?;
    restrict(path, SERVICE)
}

/// A path as it is compared: the letters' case makes no difference.
pub(super) fn without_case(path: &Path) -> PathBuf {
    path.to_string_lossy().to_lowercase().into()
}

/// Everybody may make folders below ProgramData, and the creator of one has its files: refuses a path
/// there with a folder that is neither the caller's, nor administrators', nor the system's.
fn refuse_foreign(path: &Path) -> io::Result<()> {
    const BACKUP_SEMANTICS: u32 = 0x0200_0000; // a folder can be opened
    const OPEN_REPARSE_POINT: u32 = 0x0020_0000;
    const READ_CONTROL: u32 = 0x0002_0000;
    let path = std::path::absolute(path)?;
    let shared = without_case(&program_data());
    let is_below = |folder: &Path| {
        let folder = without_case(folder);
        folder != shared && folder.starts_with(&shared)
    };
    for folder in path.ancestors().take_while(|folder| is_below(folder)) {
        // Where it is a link: the link itself, and what it leads to.
        for flags in [BACKUP_SEMANTICS | OPEN_REPARSE_POINT, BACKUP_SEMANTICS] {
            let opened = OpenOptions::new().access_mode(READ_CONTROL).custom_flags(flags).open(folder);
            let trusted = opened.and_then(|opened| is_trusted(&opened));
            let shown = folder.display();
            match trusted {
                Ok(true) => (),
                Ok(false) => {
                    return Err(io::Error::new(
                        io::ErrorKind::PermissionDenied,
                        format!(
                            "{shown} belongs to another user, who could read and change what is kept there: remove it, \
                             or, if all that is in it is to be kept, make it the administrators' with: \
                             takeown /a /r /f \"{shown}\""
                        ),
                    ));
                }
                Err(fault) => {
                    return Err(io::Error::new(fault.kind(), format!("cannot tell whose {shown} is: {fault}")));
                }
            }
        }
    }
    Ok(())
}

/// Whether this is the caller's, administrators' or the system's.
#[allow(unsafe_code)] // the descriptor is the system's memory until it is freed below
fn is_trusted(opened: &File) -> io::Result<bool> {
    let mut owner = PSID::default();
    let mut descriptor = PSECURITY_DESCRIPTOR::default();
    unsafe {
        let code = GetSecurityInfo(
            HANDLE(opened.as_raw_handle()),
            SE_FILE_OBJECT,
            OWNER_SECURITY_INFORMATION,
            Some(&raw mut owner),
            None,
            None,
            None,
            Some(&raw mut descriptor),
        );
        if code.0 != 0 {
            return Err(io::Error::from_raw_os_error(code.0 as i32));
        }
        let known = [WinBuiltinAdministratorsSid, WinLocalSystemSid];
        let trusted = match known.into_iter().any(|kind| IsWellKnownSid(owner, kind).as_bool()) {
            true => Ok(true),
            false => is_caller(owner),
        };
        LocalFree(Some(HLOCAL(descriptor.0)));
        trusted
    }
}

#[allow(unsafe_code)] // the token is owned at once, and what is read from it fits
fn is_caller(owner: PSID) -> io::Result<bool> {
    // Aligned, and with room for the longest SID there is, which has 68 bytes.
    let mut found = [0u64; 16];
    let (mut token, mut size) = (HANDLE::default(), 0);
    unsafe {
        OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token)?;
        let token = OwnedHandle::from_raw_handle(token.0);
        let room = size_of_val(&found) as u32;
        let place = Some(found.as_mut_ptr().cast());
        GetTokenInformation(HANDLE(token.as_raw_handle()), TokenUser, place, room, &raw mut size)?;
        let user = &*found.as_ptr().cast::<TOKEN_USER>();
        Ok(EqualSid(owner, user.User.Sid).is_ok())
    }
}

/// Rights with which another account changes a file, or what a folder holds: to write or add, to remove what is in
/// it, to remove it, and to change its rights or its owner. The generic rights to write and to do all are among them.
const CHANGE: u32 = 0x2 | 0x4 | 0x40 | 0x1_0000 | 0x4_0000 | 0x8_0000 | 0x4000_0000 | 0x1000_0000;
/// Those of [`CHANGE`] with which a folder's entry is exchanged for another one.
const EXCHANGE: u32 = CHANGE & !(0x2 | 0x4);

/// Returns what is wrong with a path: another user owns a folder on the way to it below ProgramData, or all users may
/// change it, or exchange it in its folder. Where it is missing, whether they may exchange the folder that it will be in.
pub(crate) fn path_fault(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|path| path.exists())?;
    if let Err(fault) = refuse_foreign(there) {
        return Some(fault.to_string());
    }
    // All users may add folders to drives and to ProgramData, which does no harm to what is there.
    let above = there.parent().filter(|_| there == path).map(|folder| (folder, EXCHANGE));
    let own = (there, if there == path { CHANGE } else { EXCHANGE });
    [Some(own), above].into_iter().flatten().find_map(|(path, rights)| {
        let shown = path.display();
        match all_users_have(path, rights) {
            Ok(false) => None,
            Ok(true) => {
                let inherited = if path.is_dir() { "(OI)(CI)" } else { "" };
                Some(format!(
                    "{shown} can be changed by all users of this machine: take that right from them with \
                     icacls \"{shown}\" /inheritance:r /grant *S-1-5-18:{inherited}F *S-1-5-32-544:{inherited}F"
                ))
            }
            Err(fault) => Some(format!("cannot tell who can change {shown}: {fault}")),
        }
    })
}

/// Whether a group that has all users of the machine, or nearly all, has one of these rights. The rights of other
/// accounts and groups were given by somebody who may do so.
fn all_users_have(path: &Path, rights: u32) -> io::Result<bool> {
    const BACKUP_SEMANTICS: u32 = 0x0200_0000; // a folder can be opened
    const READ_CONTROL: u32 = 0x0002_0000;
    let opened = OpenOptions::new().access_mode(READ_CONTROL).custom_flags(BACKUP_SEMANTICS).open(path)?;
    grants_all_users(&opened, rights)
}

#[allow(unsafe_code)] // the descriptor is the system's memory until it is freed below, and its list has so many entries
fn grants_all_users(opened: &File, rights: u32) -> io::Result<bool> {
    let groups = [
        WinWorldSid,
        WinAuthenticatedUserSid,
        WinBuiltinUsersSid,
        WinInteractiveSid,
        WinNetworkSid,
        WinAnonymousSid,
        WinBuiltinGuestsSid,
    ];
    let mut list = std::ptr::null_mut::<ACL>();
    let mut descriptor = PSECURITY_DESCRIPTOR::default();
    unsafe {
        let code = GetSecurityInfo(
            HANDLE(opened.as_raw_handle()),
            SE_FILE_OBJECT,
            DACL_SECURITY_INFORMATION,
            None,
            None,
            Some(&raw mut list),
            None,
            Some(&raw mut descriptor),
        );
        if code.0 != 0 {
            return Err(io::Error::from_raw_os_error(code.0 as i32));
        }
        // Without a list everybody may do everything.
        let count = list.as_ref().map(|list| u32::from(list.AceCount));
        let granted = count.is_none_or(|count| {
            (0..count).any(|index| {
                let mut entry = std::ptr::null_mut();
                if GetAce(list, index, &raw mut entry).is_err() {
                    return true;
                }
                let entry = &*entry.cast::<ACCESS_ALLOWED_ACE>();
                let sid = PSID((&raw const entry.SidStart).cast_mut().cast());
                u32::from(entry.Header.AceType) == ACCESS_ALLOWED_ACE_TYPE
                    && u32::from(entry.Header.AceFlags) & INHERIT_ONLY_ACE.0 == 0
                    && entry.Mask & rights != 0
                    && groups.into_iter().any(|group| IsWellKnownSid(sid, group).as_bool())
            })
        });
        LocalFree(Some(HLOCAL(descriptor.0)));
        Ok(granted)
    }
}

/// As [`path_fault`]: rights to read follow from the folder here.
pub(crate) fn secret_fault(path: &Path) -> Option<String> {
    path_fault(path)
}

/// As [`path_fault`], of a program that is no name to be looked for in `PATH`.
pub(crate) fn program_fault(program: &str, folder: Option<&Path>, _user: Option<&super::Identity>) -> Option<String> {
    let path = folder.map_or_else(|| PathBuf::from(program), |folder| folder.join(program));
    program.contains(['/', '\\']).then(|| path_fault(&path)).flatten()
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
